"""Config files before Hydra merges them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from trainyard.config.plain import plain

Sources = tuple[tuple[str, str], ...]
"""Places in which files are searched, in order: each is a schema (`file` or `pkg`) and a path."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def sources_of(hydra: Any) -> Sources:
    """Return the sources of a composition, from Hydra's own node."""
    found: Any = plain(hydra.runtime._get_node("config_sources"))
    return tuple((str(source["schema"]), str(source["path"])) for source in found)


@dataclass(frozen=True)
class ConfigFile:
    """A config file: its path, and its text."""

    path: Any
    text: str

    @cached_property
    def whole(self) -> Any:
        """The content.

        Raises:
            yaml.YAMLError: the text is not YAML.
        """
        return yaml.load(self.text, Loader=_LOADER)

    @property
    def content(self) -> dict[str, Any]:
        """The content; empty if it is not a mapping."""
        return self.whole if isinstance(self.whole, dict) else {}

    def included(self, name: str) -> Iterator[str]:
        """Yield the configs that the defaults list of this file includes, without groups that it selects.

        Args:
            name: the name of this file: `hook/ema`.
        """
        entries = self.content.get("defaults") if "defaults:" in self.text else None
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, str) and entry != "_self_" and "${" not in entry:
                option = entry.partition("@")[0]
                yield option[1:] if option.startswith("/") else f"{name.rpartition('/')[0]}/{option}".lstrip("/")


def find_config(name: str, sources: Sources) -> ConfigFile | None:
    """Return a file (`model/mlp`) from the first source that has it; None if it is missing."""
    for schema, path in sources:
        folder = Path(path) if schema == "file" else resources.files(path) if schema == "pkg" and path else None
        file = None if folder is None else folder.joinpath(*f"{name}.yaml".split("/"))
        if file is not None and file.is_file():
            return ConfigFile(file, file.read_text(encoding="utf-8"))
    return None


def read_config(name: str, sources: Sources) -> tuple[dict[str, Any], str]:
    """Return the content of a file (`model/mlp`) and its text; both are empty if it is missing."""
    file = find_config(name, sources)
    return ({}, "") if file is None else (file.content, file.text)


def at(content: Any, key: str) -> Any:
    """Return the value at a key (`hydra.launcher.max_jobs`); None if there is none."""
    for name in key.split("."):
        content = content.get(name) if isinstance(content, Mapping) else None
    return content
