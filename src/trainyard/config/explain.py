"""Explanations of Hydra's errors."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.errors import ConfigError, TrainyardError


def explain(error: Exception, overrides: Sequence[str], config_dir: str, config_name: str) -> TrainyardError | None:
    """Explain an error of Hydra or OmegaConf to the user; return None if the command is not its cause.

    Args:
        error: the error that composing raised.
        overrides: the overrides of the command line.
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
    if isinstance(error, OSError):  # Hydra makes the directory before it calls the task
        return ConfigError(
            "hydra.run.dir", error.filename, "a directory that can be made and written", hint=f"{error.strerror}."
        )
    if isinstance(error, ValueError) and "Config group override" in str(error):
        return _explain_choice(overrides, config_dir)
    mark = getattr(error, "problem_mark", None)
    if mark is not None:  # from PyYAML: two entries of one name, or a bracket that is not closed
        return TrainyardError(f"{mark.name}, line {mark.line + 1}: {error.problem}.")  # type: ignore[attr-defined]
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
    node, parent, name = _deepest(cfg, key)
    options = [str(entry) for entry in node]
    if name in options:
        return TrainyardError(f"{key}: {_first_line(error)}")
    if not parent:
        options = sorted({*groups, *options})
        return ConfigError(key, name, "a group or key of this config", options=options, hint=_how_to_add(key))
    chosen_with = name in _options(parent.replace(".", "/"), config_dir)
    hint = f"{name} is an option of {parent} that is not chosen." if chosen_with else _how_to_add(key)
    if chosen_with and parent == "hook":
        hint = f"{hint[:-1]}: hook={name} adds it."
    return ConfigError(key, name, f"a key of {parent}: {', '.join(options)}", options=options, hint=hint)


def _deepest(cfg: DictConfig, key: str) -> tuple[DictConfig, str, str]:
    """Return the deepest existing node on the path `key`, its own key, and the rest of `key`."""
    parts = key.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        parent = ".".join(parts[:depth])
        node = OmegaConf.select(cfg, parent, throw_on_missing=False, throw_on_resolution_failure=False)
        if isinstance(node, DictConfig):
            return node, parent, parts[depth]
    return cfg, "", parts[0]


def _explain_choice(overrides: Sequence[str], config_dir: str) -> TrainyardError | None:
    """Explain `group=null` or `group=<number>`: neither is the name of an option."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        options = _options(override.key_or_group, config_dir)
        if options and not isinstance(override.value(), str | list):
            return ConfigError(override.key_or_group, override.value(), f"one of {', '.join(options)}", options=options)
    return None


def _how_to_add(key: str) -> str:
    return f"A new key is added with +{key}=…"


def _composed_without(
    key: str, overrides: Sequence[str], config_dir: str, config_name: str
) -> tuple[DictConfig, list[str]]:
    """Return the config that the other overrides give, and the groups that it has."""
    others = [entry for entry in overrides if entry.lstrip("+~").split("=")[0] != key]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir, **VERSION_BASE):
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
    with initialize_config_dir(config_dir, **VERSION_BASE):
        return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
