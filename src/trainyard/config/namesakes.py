"""Options of `hook` that are chosen together and give different hooks one name."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from trainyard.errors import ConfigError

Sources = tuple[tuple[str, str], ...]


def check_hook_names() -> None:
    """Refuse `hook=[default,mine]` where both files have a hook `timer`, each with another `_target_`.

    Hydra merges the two nodes, and one of the hooks would be lost without a word. A file that is to replace a hook of
    another says so by having that one in its own defaults list. Outside a job of Hydra's there is nothing to check.

    Raises:
        ConfigError: names both files.
    """
    if HydraConfig.initialized():
        config = HydraConfig.get()
        overrides: Any = OmegaConf.to_container(config.overrides.task)  # as they were given: ${…} is another's affair
        chosen = [entry for entry in overrides if entry.startswith("hook=[")]
        if chosen:
            _check(chosen[-1], tuple((source.schema, source.path) for source in config.runtime.config_sources))


@lru_cache(maxsize=64)
def _check(override: str, sources: Sources) -> None:
    options: Any = OverridesParser.create().parse_override(override).value()
    seen: dict[str, tuple[str, str]] = {}
    for option in map(str, options):
        for name, target in _targets(option, sources).items():
            other, of_other = seen.setdefault(name, (option, target))
            if target != of_other:
                raise ConfigError(
                    f"hook.{name}",
                    target,
                    f"one hook of that name, where hook/{other}.yaml has {of_other}",
                    hint=f"Give the one in hook/{option}.yaml another name; or, to have it replace the other, choose "
                    f"it without {other} and put `defaults: [{other}]` at its top.",
                )


def _targets(option: str, sources: Sources) -> dict[str, str]:
    """The hooks that a file itself has, each with its `_target_`."""
    for schema, path in sources:
        folder = Path(path) if schema == "file" else resources.files(path) if schema == "pkg" and path else None
        file = None if folder is None else folder.joinpath("hook", f"{option}.yaml")
        if file is not None and file.is_file():
            content = OmegaConf.create(file.read_text(encoding="utf-8"))
            raw: Any = OmegaConf.to_container(content) if isinstance(content, DictConfig) else {}
            nodes = {name: node for name, node in raw.items() if isinstance(node, dict) and "_target_" in node}
            return {str(name): str(node["_target_"]) for name, node in nodes.items()}
    return {}
