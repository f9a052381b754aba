"""Hydra's own complaints about a config, in the words that the rest of the project uses."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainyard.errors import ConfigError, TrainyardError


def explain(error: Exception, overrides: Sequence[str], config_dir: str, config_name: str) -> TrainyardError | None:
    """What an exception of Hydra or OmegaConf means for whoever wrote the command; None where it is none of theirs.

    Args:
        error: what composing raised.
        overrides: those of the command line.
        config_dir: the folder of the primary config.
        config_name: its name.
    """
    absent = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
    if isinstance(error, MissingConfigException) and absent:
        group, _, option = absent.group(1).rpartition("/")
        options = _options(group, config_dir)
        return ConfigError(group or "config", option, f"one of {', '.join(options)}", options=options)
    if isinstance(error, OverrideParseException):
        return TrainyardError(f"{error.override!r} cannot be read as an override: {_first_line(error)}")
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        return _explain_key(error, overrides, config_dir, config_name)
    if isinstance(error, OSError):  # Hydra makes the directory before it calls anybody
        return ConfigError(
            "hydra.run.dir", error.filename, "a directory that can be made and written", hint=f"{error.strerror}."
        )
    if isinstance(error, HydraException):
        return TrainyardError(_first_line(error))
    return None


def _explain_key(
    error: Exception, overrides: Sequence[str], config_dir: str, config_name: str
) -> ConfigError | TrainyardError:
    text = str(error)
    found = re.search(r"'([^']+)'", text)
    if found is None:
        return TrainyardError(_first_line(error))
    key = found.group(1).lstrip("+~").split("=")[0]
    cfg, groups = _composed_without(key, overrides, config_dir, config_name)
    if "." not in key:
        options = sorted({*groups, *(str(name) for name in cfg)})
        return ConfigError(key, key, "a group or key of this config", options=options, hint=_how_to_add(key))
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent, throw_on_missing=False, throw_on_resolution_failure=False)
    options = [str(entry) for entry in node] if isinstance(node, DictConfig) else []
    if not options:
        above = [str(entry) for entry in cfg]
        return ConfigError(key, parent, "a group or key of this config", options=above, hint=_how_to_add(key))
    if name in options:
        return TrainyardError(f"{key}: {_first_line(error)}")
    return ConfigError(key, name, f"a key of {parent}: {', '.join(options)}", options=options, hint=_how_to_add(key))


def _how_to_add(key: str) -> str:
    return f"A new key is added with +{key}=…"


def _composed_without(
    key: str, overrides: Sequence[str], config_dir: str, config_name: str
) -> tuple[DictConfig, list[str]]:
    """The config that the other overrides give, and the groups it chooses from."""
    others = [entry for entry in overrides if entry.lstrip("+~").split("=")[0] != key]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir, version_base="1.3"):
            for attempt in (others, []):
                try:
                    cfg = compose(config_name, overrides=list(attempt), return_hydra_config=True)
                except (HydraException, OmegaConfBaseException):
                    continue
                groups = [str(group) for group in cfg.hydra.runtime.choices]
                return cfg, groups
    finally:
        GlobalHydra.instance().clear()
    return DictConfig({}), []


def _options(group: str, config_dir: str) -> list[str]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir, version_base="1.3"):
        return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
