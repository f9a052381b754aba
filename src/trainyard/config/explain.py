"""Explanations of Hydra's errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from shlex import quote
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.errors import ConfigError, TrainyardError

PACKAGES = {
    "hydra/sweeper": {
        "optuna": "hydra-optuna-sweeper",
        "ax": "hydra-ax-sweeper",
        "nevergrad": "hydra-nevergrad-sweeper",
    },
    "hydra/launcher": {
        "joblib": "hydra-joblib-launcher",
        "ray_aws": "hydra-ray-launcher",
        "rq": "hydra-rq-launcher",
        "submitit_local": "hydra-submitit-launcher",
        "submitit_slurm": "hydra-submitit-launcher",
    },
}
"""Hydra's plugins that are separate packages, by group and option."""
PLUGINS = ("hydra.sweeper", "hydra.launcher")
OPTIONAL = ("metric",)
"""Groups without which a config works."""
SYNONYMS = {
    "epochs": "max_epochs",
    "num_epochs": "max_epochs",
    "iters": "max_iters",
    "max_steps": "max_iters",
    "steps": "max_iters",
    "learning_rate": "lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "num_workers": "workers",
}
"""Names that other tools use for a key."""


def explain(error: Exception, overrides: Sequence[str], config_dir: str, config_name: str) -> TrainyardError | None:
    """Explain an error of Hydra or OmegaConf to the user; return None if it is not caused by the command.

    Args:
        error: the error raised by the composition.
        overrides: the overrides of the command line.
        config_dir: the folder of the primary config.
        config_name: its name.
    """
    absent = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
    if isinstance(error, MissingConfigException) and absent:
        group, _, option = absent.group(1).rpartition("/")
        options = _options(group, config_dir)
        package = PACKAGES.get(group, {}).get(option)
        hint = f"The option {option} is in a separate package: pip install {package}" if package else ""
        accepted = (
            f"one of {', '.join(options)}" if options else f"an option of an existing group; {group} has no options"
        )
        return ConfigError(group or "config", option, accepted, options=options, hint=hint)
    if isinstance(error, OverrideParseException):
        return TrainyardError(f"{error.override!r} is not a valid override: {_how_to_quote(error)}")
    if isinstance(error, ConfigCompositionException) and (told := _explain_sweep(str(error))):
        return told
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        return _explain_key(error, overrides, config_dir, config_name)
    if isinstance(error, OSError):  # Hydra makes the directory before it calls the task
        return ConfigError("hydra.run.dir", error.filename, "a writable directory", hint=f"{error.strerror}.")
    if isinstance(error, ValueError | TypeError) and (told := _explain_choice(overrides, config_dir)):
        return told
    mark = getattr(error, "problem_mark", None)
    if mark is not None:  # from PyYAML: two entries of one name, or a bracket that is not closed
        return TrainyardError(f"{mark.name}, line {mark.line + 1}: {error.problem}.")  # type: ignore[attr-defined]
    if isinstance(error, HydraException):
        return _explain_interval(error, overrides) or TrainyardError(_first_line(error))
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
    removed = any(entry.startswith("~") and entry.lstrip("~").split("=")[0] == key for entry in overrides)
    how_to_add = f"The config has no {key} to remove." if removed else f"To add a new key, use +{key}=…"
    if name in options:
        full = f"{parent}.{name}" if parent else name
        if key != full:
            return TrainyardError(f"{key}: {full} is a single value and has no keys. To change it, use {full}=…")
        return _explain_value(error, key)
    if not parent:
        options = sorted({*groups, *options})
        meant = [] if "." in key else _of_that_name(cfg, name)
        hint = how_to_add if not meant else f"Did you mean {' or '.join(meant)}?"
        return ConfigError(key, name, "a group or key of this config", options=() if meant else options, hint=hint)
    if parent in PLUGINS:  # a plugin refuses an argument that it does not have, also one that is added
        options = [option for option in options if not option.startswith("_")]
        chosen = OmegaConf.select(cfg, f"hydra.runtime.choices.{parent.replace('.', '/')}")
        accepted = f"a setting of {parent.replace('.', '/')}={chosen}: {', '.join(options)}"
        return ConfigError(key, name, accepted, options=options)
    chosen_with = name in _options(parent.replace(".", "/"), config_dir)
    hint = f"{name} is an option of {parent} that is not selected." if chosen_with else how_to_add
    if chosen_with and parent == "hook" and not removed:
        hint = f"{hint} Use hook={name} to select it."
    return ConfigError(key, name, f"a key of {parent}: {', '.join(options)}", options=options, hint=hint)


def _explain_value(error: Exception, key: str) -> TrainyardError:
    """Explain a value that does not fit an existing key."""
    cause = error if error.__cause__ is None else error.__cause__
    added = re.search(r"Key '([^']+)' is not in struct", str(cause))
    if added is None:
        return TrainyardError(f"{key}: {_first_line(cause)}")
    return TrainyardError(
        f"{key}: the key {added[1]!r} does not exist. A mapping can only change existing keys: "
        f"keys of the config and keys that an earlier override added. Add a new key with +{key}.{added[1]}=…"
    )


def _explain_sweep(text: str) -> TrainyardError | None:
    """Explain several values of one key in a single run, and several values of a hydra key in a sweep."""
    given = re.search(r"'(.+?)'(?:\n|$| requires --multirun)", text.removeprefix("Sweeping over Hydra's"))
    if given is None:
        return None
    key, _, value = given[1].partition("=")
    key = key.lstrip("+")
    if text.startswith("Sweeping over Hydra's"):
        return ConfigError(key, value, "one value, because hydra keys apply to the entire sweep")
    if text.startswith("Ambiguous value"):
        text_of = quote(f'{key}="{value}"')
        choose = f"To train with each value, pass -m. A list is {key}=[{value}]; a string is {text_of}"
        return ConfigError(key, value, f"one value. {choose}")
    if "requires --multirun" in text:
        hint = "-m starts a sweep. A range, interval(…), needs a sweeper that samples from it: hydra/sweeper=…"
        return ConfigError(key, value, "one value", hint=hint if "interval" in value else "-m starts a sweep.")
    return None


def _explain_interval(error: HydraException, overrides: Sequence[str]) -> ConfigError | None:
    """Explain a range of numbers for a sweeper that accepts only values."""
    if "does not support sweep type" not in str(error):
        return None
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_interval_sweep():
            hint = "To search a range of numbers, use hydra/sweeper=search."
            given = str(override.input_line).partition("=")[2]
            return ConfigError(override.key_or_group, given, "values: 1,2, choice(1,2) or range(1,3)", hint=hint)
    return None


def _of_that_name(cfg: DictConfig, name: str) -> list[str]:
    """Return the keys one level below a group that have this name, or a name that other tools use for the key."""
    wanted = SYNONYMS.get(name, name)
    groups = {
        str(group): OmegaConf.select(cfg, str(group), throw_on_missing=False, throw_on_resolution_failure=False)
        for group in cfg
        if group != "hydra"
    }
    return [f"{group}.{wanted}" for group, node in groups.items() if isinstance(node, DictConfig) and wanted in node]


def _how_to_quote(error: OverrideParseException) -> str:
    """Return Hydra's reason, or how to quote a value that would be a string if it were quoted."""
    key, equals, value = error.override.partition("=")
    if equals and not set(value) & set("[](){}'\"$"):
        line = f'{key}="{value}"'
        try:
            OverridesParser.create().parse_override(line)
        except HydraException:
            pass
        else:
            return f"a string with these characters must be quoted: {quote(line)}."
    return _first_line(error)


def _deepest(cfg: DictConfig, key: str) -> tuple[DictConfig, str, str]:
    """Return the deepest existing node on the path `key`, the key of this node, and the rest of `key`."""
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
        if options and not _is_choice(override.value()):
            key, given = override.key_or_group, override.value()
            hint = f"To select none, pass '~{key}'." if given is None and key in OPTIONAL else ""
            return ConfigError(key, given, f"one of {', '.join(options)}", options=options, hint=hint)
    return None


def _is_choice(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _composed_without(
    key: str, overrides: Sequence[str], config_dir: str, config_name: str
) -> tuple[DictConfig, list[str]]:
    """Return the config composed from the other overrides, and its groups."""
    others = [entry for entry in overrides if entry.lstrip("+~").split("=")[0] != key]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir, **VERSION_BASE):
            for attempt in (others, _of_one_value(others), []):
                try:
                    cfg = compose(config_name, overrides=list(attempt), return_hydra_config=True)
                except (HydraException, OmegaConfBaseException):
                    continue
                groups = [str(group) for group in cfg.hydra.runtime.choices]
                return cfg, groups
    finally:
        GlobalHydra.instance().clear()
    return DictConfig({}), []


def _of_one_value(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without sweep overrides, which give a key several values."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [str(override.input_line) for override in parsed if not override.is_sweep_override()]


def _options(group: str, config_dir: str) -> list[str]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir, **VERSION_BASE):
        return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
