"""Explanations of Hydra's errors."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from types import FrameType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from trainyard.config.explain_files import EMPTY, explain_file, selected_groups, selecting
from trainyard.config.hydra_versions import full_key
from trainyard.config.places import ConfigPlaces
from trainyard.config.sweepers import SAMPLER_ARGUMENTS, SAMPLERS, hint_for
from trainyard.errors import ConfigError, TrainyardError, first_line, listed, nearest, quoted

SWEPT_VALUES = "values: 1,2, choice(1,2) or range(1,3)"
"""Accepted values of a key that is swept."""
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
SWEEPER = "hydra/sweeper"
PLUGINS = ("hydra.sweeper", "hydra.launcher")
_COMPOSITION = ("hydra._internal.config_repository", "trainyard.sweep.compose")
"""Modules that read configs."""
OPTIONAL = ("data", "experiment", "metric")
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


def explain(
    error: Exception, overrides: Sequence[str], places: ConfigPlaces, directory: str = "hydra.run.dir"
) -> TrainyardError | None:
    """Explain an error of Hydra or OmegaConf to the user; return None if it is not caused by the command.

    Args:
        error: the error raised by the composition.
        overrides: the overrides of the command line.
        places: the places of the configs.
        directory: the key of the directory that the command creates.
    """
    if isinstance(error, MissingConfigException):
        return _explain_missing(error, overrides, places)
    if isinstance(error, OverrideParseException):
        return TrainyardError(f"{quoted(error.override)} is not a valid override: {_how_to_quote(error)}")
    if isinstance(error, ConfigCompositionException) and (
        told := _explain_sweep(str(error), places) or _explain_forced(str(error), places)
    ):
        return told
    if told := _explain_added(error, overrides) or explain_file(error, places):
        return told
    if isinstance(error, InterpolationResolutionError):
        key = f"{error.full_key}: " if error.full_key else ""
        return TrainyardError(f"{key}{first_line(error).rstrip('.')}.")
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        return _explain_key(error, overrides, places)
    if told := _explain_logging(error):
        return told
    if isinstance(error, OSError) and error.filename is not None:
        if _creates_directory(error):  # before the task is called
            return ConfigError(directory, error.filename, "a writable directory", hint=f"{error.strerror}.")
        return TrainyardError(f"{error.filename}: {error.strerror}.")
    if told := _explain_plugin(error):
        return told
    if isinstance(error, ValueError | TypeError) and (
        told := _explain_choice(overrides, places) or _explain_index(error, overrides, places)
    ):
        return told
    mark = getattr(error, "problem_mark", None)
    if mark is not None:  # from PyYAML: two entries of one name, or a bracket that is not closed
        return TrainyardError(f"{mark.name}, line {mark.line + 1}: {error.problem}.")  # type: ignore[attr-defined]
    if isinstance(error, HydraException):
        key = f"{full_key(error)}: " if full_key(error) else ""
        return _explain_interval(error, overrides) or TrainyardError(f"{key}{first_line(error)}")
    if isinstance(error, ValueError) and _is_hydras(error):
        return TrainyardError(f"{' '.join(str(error).split()).rstrip('.')}.")
    return None


def _explain_missing(
    error: MissingConfigException, overrides: Sequence[str], places: ConfigPlaces
) -> ConfigError | TrainyardError:
    """Explain that a config does not exist: the primary config, an option of a group, or an included file."""
    absent = re.search(r"(?:In '([^']+)': )?Could not (?:find|load) '([^']+)'", str(error))
    if absent is None:
        where = " or ".join(map(str, places.folders))
        if not where:
            return ConfigError("--config-path", places.main, "the name of a package that contains an __init__.py")
        known = places.primary_configs()
        accepted = f"a config in {where}: {', '.join(known)}" if known else f"a config in {where}, which has none"
        here = Path("conf", f"{places.name.removesuffix('.yaml')}.yaml")
        hint = f"To use {here}, also pass --config-path conf." if here.is_file() and not places.is_given else ""
        return ConfigError("--config-name", places.name, accepted, options=() if hint else known, hint=hint)
    file, name = absent.groups()
    group, _, option = name.rpartition("/")
    options = [each for each in (*(error.options or ()), *places.options(group)) if each != EMPTY]
    options = list(dict.fromkeys(options))
    hint = _instead_of(group, option)
    meant = () if hint else options
    if file is not None and not any(option in entry.partition("=")[2] for entry in overrides):
        # Hydra names the file that selects the group first, and not the file that overrides the option.
        if found := selecting(option, group, file, places):
            selected = f"The defaults list of {found} contains this name."
            hint = f"{hint.rstrip('.')}. {selected}" if hint else selected
        last = group.rpartition("/")[2]
        if not options and places.options(last):
            hint += f" Write 'override /{last}': without the /, the group is searched below this file."
        elif not options and (close := nearest(group, selected_groups(places) - {group})):
            hint += f" Did you mean the group {close!r}?"
        hint = hint.lstrip()
    accepted = f"one of {', '.join(options)}" if options else f"an option of an existing group; {group} has no options"
    return ConfigError(group or "defaults", option, accepted, options=meant, hint=hint)


def _instead_of(group: str, option: str) -> str:
    """Return how to get an option that Trainyard does not have, or what to use instead; empty if there is nothing."""
    if group == f"{SWEEPER}/sampler":
        return SAMPLERS.get(option, "")
    package = PACKAGES.get(group, {}).get(option)
    hint = f"The option {option} is in a separate package: pip install {package}" if package else ""
    if group == SWEEPER and option == "optuna":
        hint += ". Alternatively, hydra/sweeper=search uses Optuna's samplers: pip install 'trainyard[search]'"
    return hint


def _explain_logging(error: Exception) -> TrainyardError | None:
    """Explain that Python's logging refuses its settings; None if this is another error."""
    if not any(frame.f_code.co_name == "configure_log" for frame in _frames(error)):
        return None
    reasons = [str(each).rstrip(".") for each in (error, error.__cause__) if each is not None]
    return TrainyardError(
        f"hydra.job_logging or hydra.verbose: Python's logging refuses a setting. {': '.join(reasons)}."
    )


def _creates_directory(error: Exception) -> bool:
    """Return whether an error occurred when the directory of a run or a sweep, or a file in it, was created."""
    places = [(str(frame.f_globals.get("__name__")), frame.f_code.co_name) for frame in _frames(error)]
    if any(module.startswith(_COMPOSITION) for module, _ in places):  # a config is read
        return False
    return any(
        name in ("mkdir", "makedirs")
        or (module, name) == ("hydra.core.utils", "_save_config")
        or module.startswith("trainyard.sweep")
        for module, name in places
    )


def _explain_plugin(error: Exception) -> TrainyardError | None:
    """Explain that Hydra cannot build the launcher or the sweeper; None if this is another error."""
    names = [frame.f_code.co_name for frame in _frames(error)]
    made = [part for part in ("sweeper", "launcher") if f"instantiate_{part}" in names]
    if not made or not _is_hydras(error):
        return None
    hint = f"{first_line(error).rstrip('.')}."
    return TrainyardError(f"hydra.{made[-1]}: Hydra cannot build this config. {hint}")


def _frames(error: Exception) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _is_hydras(error: Exception) -> bool:
    """Return whether code of Hydra has raised an error."""
    frames = _frames(error)
    return bool(frames) and frames[-1].f_globals.get("__name__", "").partition(".")[0] == "hydra"


def _explain_key(error: Exception, overrides: Sequence[str], places: ConfigPlaces) -> ConfigError | TrainyardError:
    text = str(error)
    if required := re.match(r"You must specify '([^']+)'", text):
        options = places.options(required[1].partition("@")[0])
        return ConfigError(required[1], "???", f"one of {', '.join(options)}", options=options)
    found = re.search(r"'([^']+)'", text)
    if found is None:
        return TrainyardError(first_line(error))
    key = found.group(1).lstrip("+~").split("=")[0]
    cfg, groups = _composed_without(key, overrides, places)
    if key.rpartition("/")[0] == SWEEPER:
        return _explain_part(key, cfg, groups)
    node, parent, name = _deepest(cfg, key)
    options = [str(entry) for entry in node]
    dropped = next((entry for entry in overrides if entry.startswith("~") and _is_below(key, entry)), None)
    if dropped is not None and name not in options:
        below = dropped.lstrip("~").partition("=")[0]
        return TrainyardError(f"{key}: the override {dropped} removes {below}. Omit one of these overrides.")
    given = [entry for entry in overrides if entry.lstrip("+").split("=")[0] == key]
    if "An item is already at" in text and name not in options and len(given) > 1:
        return TrainyardError(f"{key}: this key is given more than once: {listed(given)}. Keep one of these overrides.")
    removed = any(entry.startswith("~") and entry.lstrip("~").split("=")[0] == key for entry in overrides)
    how_to_add = _how_to_add(key, removed)
    if parent == "hook" and key != f"{parent}.{name}" and not removed:  # a hook cannot consist of this key alone
        how_to_add = _how_to_select(name, places)
    if name in options:
        full = f"{parent}.{name}" if parent else name
        if key != full:
            value = OmegaConf.select(cfg, full, throw_on_missing=False, throw_on_resolution_failure=False)
            group = full.replace(".", "/")
            if value is None and (parts := places.options(group)):
                return _explain_null(key, full, f"+{group}", parts)
            return _explain_leaf(key, full, value)
        if entry := next((each for each in overrides if each.startswith(f"{key}=") and places.options(key)), None):
            return _explain_unselected(key, entry)
        return _explain_value(error, key)
    if not parent:
        if key != name and name in groups and not removed and (parts := places.options(name)):
            return _explain_null(key, name, name, parts)
        options = sorted({*groups, *options})
        meant = [] if "." in key else _of_that_name(cfg, name)
        hint = how_to_add if not meant else f"Did you mean {' or '.join(meant)}?"
        return ConfigError(key, name, "a group or key of this config", options=() if meant else options, hint=hint)
    if parent in PLUGINS:  # a plugin refuses an argument that it does not have, also one that is added
        options = [option for option in options if not option.startswith("_")]
        group = parent.replace(".", "/")
        chosen = OmegaConf.select(cfg, f"hydra.runtime.choices.{group}")
        accepted = f"a setting of {group}={chosen}: {', '.join(options)}"
        hint = hint_for(name, chosen) if group == SWEEPER else ""
        return ConfigError(key, name, accepted, options=() if hint else options, hint=hint)
    if parent == "hydra.sweeper.sampler" and name in SAMPLER_ARGUMENTS:
        return ConfigError(key, name, f"a key of {parent}: {', '.join(options)}", hint=SAMPLER_ARGUMENTS[name])
    chosen_with = name in places.options(parent.replace(".", "/"))
    hint = f"{name} is an option of {parent} that is not selected." if chosen_with else how_to_add
    if chosen_with and parent == "hook" and not removed:
        hint = f"{hint} Use hook={name} to select it."
    return _explain_absent(key, node, parent, name, hint)


def explain_absent(key: str, cfg: DictConfig, *, removed: bool) -> TrainyardError | None:
    """Explain an override of a key that a config does not have, below its first level; None if the config has it.

    Args:
        key: the key.
        cfg: the config without the override.
        removed: whether the override removes the key.
    """
    node, parent, name = _deepest(cfg, key)
    full = f"{parent}.{name}"
    if name not in node:
        return _explain_absent(key, node, parent, name, _how_to_add(key, removed))
    return None if key == full else _explain_leaf(key, full, OmegaConf.select(cfg, full))


def _explain_absent(key: str, node: DictConfig, parent: str, name: str, hint: str) -> ConfigError:
    options = [str(entry) for entry in node]
    accepted = f"a key of {parent}: {', '.join(options)}" if options else f"no key, because {parent} is empty"
    deeper = [f"{parent}.{each}" for each in _of_that_name(node, name)] if key == f"{parent}.{name}" else []
    if deeper and not nearest(name, options):
        return ConfigError(key, name, accepted, hint=f"Did you mean {' or '.join(deeper)}?")
    return ConfigError(key, name, accepted, options=options, hint=hint)


def _how_to_add(key: str, removed: bool) -> str:
    return f"The config has no {key} to remove." if removed else f"To add a new key, use +{key}=…"


def _explain_leaf(key: str, full: str, value: Any) -> TrainyardError:
    """Explain a key below a key that contains no mapping."""
    kind = "null" if value is None else "a list" if OmegaConf.is_list(value) else "a single value"
    return TrainyardError(f"{key}: {full} is {kind} and has no keys. To change it, use {full}=…")


def _is_below(key: str, removal: str) -> bool:
    """Return whether a key is below the key or group that an override removes (`~metric`)."""
    return key.startswith(f"{removal.lstrip('~').partition('=')[0].replace('/', '.')}.")


def _how_to_select(name: str, places: ConfigPlaces) -> str:
    """Return how to select an option of `hook` that contains the hook `name`; empty if no option does."""
    for option in sorted(places.options("hook"), key=lambda option: option != "default"):
        try:
            hooks = places.compose([f"hook={option}"]).hook
        except (HydraException, OmegaConfBaseException):
            continue
        if name in hooks:
            return f"hook={option} selects {name}."
    return ""


def _explain_part(key: str, cfg: DictConfig, groups: Sequence[str]) -> ConfigError:
    """Explain a group that the selected sweeper does not have, such as hydra/sweeper/sampler."""
    name, chosen = key.rpartition("/")[2], OmegaConf.select(cfg, f"hydra.runtime.choices.{SWEEPER}")
    own = [group.rpartition("/")[2] for group in groups if group.startswith(f"{SWEEPER}/")]
    accepted = f"a group of {SWEEPER}={chosen}: {', '.join(own)}" if own else f"no group, because {chosen} has none"
    hint = hint_for(name, chosen)
    return ConfigError(key, name, accepted, options=() if hint else own, hint=hint)


def _explain_null(key: str, node: str, group: str, options: Sequence[str]) -> TrainyardError:
    """Explain that a node, of whose group no option is selected, has no keys."""
    return TrainyardError(
        f"{key}: {node} is null and has no keys. To select an option, use {group}=OPTION. The options are "
        f"{', '.join(options)}."
    )


def _explain_unselected(key: str, entry: str) -> TrainyardError:
    """Explain `tracker=none` for a config with values of a group, of which its defaults list selects no option."""
    return TrainyardError(
        f"{entry}: this config contains the values of {key}, and its defaults list selects no option of {key} to "
        f"replace. To set the values of the option in addition to these values, use {quote(f'+{entry}')}"
    )


def _explain_value(error: Exception, key: str) -> TrainyardError:
    """Explain a value that does not fit an existing key."""
    cause = error if error.__cause__ is None else error.__cause__
    if "An item is already at" in str(cause):
        return TrainyardError(f"{key}: the config already has this key. To change its value, use {key}=…")
    added = re.search(r"Key '([^']+)' is not in struct", str(cause))
    if added is None:
        return TrainyardError(f"{key}: {first_line(cause)}")
    return TrainyardError(
        f"{key}: the key {quoted(added[1])} does not exist. A mapping can only change existing keys: "
        f"keys of the config and keys that an earlier override added. Add a new key with +{key}.{added[1]}=…"
    )


def _explain_added(error: Exception, overrides: Sequence[str]) -> TrainyardError | None:
    """Explain `+model=cnn`, which adds a group of which an option is already selected."""
    found = re.match(r"(\S+) appears more than once|Multiple values for (\S+)\.", str(error))
    group = (found[1] or found[2]) if found else None
    added = next((entry for entry in overrides if entry.startswith((f"+{group}=", f"++{group}="))), None)
    if added is None:
        return None
    return TrainyardError(
        f"{added}: the configs already select an option of {group}. To select another one, use "
        f"{quote(added.lstrip('+'))}"
    )


def _explain_forced(text: str, places: ConfigPlaces) -> TrainyardError | None:
    """Explain `++model=cnn`; Hydra has no such override of a group."""
    found = re.match(r"force-add of config groups is not supported: '(\+\+([^=]+)=.*)'", text)
    if found is None:
        return None
    plus = "" if found[2] in selected_groups(places) else "+"
    way = quote(f"{plus}{found[1].lstrip('+')}")
    return TrainyardError(f"{found[1]}: ++ cannot select an option of a group. To select this option, use {way}")


def _explain_index(error: Exception, overrides: Sequence[str], places: ConfigPlaces) -> TrainyardError | None:
    """Explain a key of a list that is no index, such as `optim.betas.a=1`; None if this is another error."""
    frames = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in _frames(error)]
    if not frames or frames[-1] != "omegaconf":
        return None
    for entry in overrides:
        key = entry.lstrip("+~").split("=")[0]
        names = key.split(".")
        lists = [".".join(names[:depth]) for depth in range(1, len(names))]
        cfg, _ = _composed_without(key, overrides, places) if lists else (DictConfig({}), [])
        for full in lists:
            node = OmegaConf.select(cfg, full, throw_on_missing=False, throw_on_resolution_failure=False)
            if OmegaConf.is_list(node):
                return _explain_leaf(key, full, node)
    return None


def _explain_sweep(text: str, places: ConfigPlaces) -> TrainyardError | None:
    """Explain several values of one key in a single run, and several values of a hydra key in a sweep."""
    given = re.search(r"'(.+?)'(?:\n|$| requires --multirun)", text.removeprefix("Sweeping over Hydra's"))
    if given is None:
        return None
    added, _, value = given[1].partition("=")
    key = added.lstrip("+")
    of_hydra = key.startswith(("hydra.", "hydra/"))
    if text.startswith("Sweeping over Hydra's"):
        return ConfigError(key, value, "one value, because hydra keys apply to the entire sweep")
    if text.startswith("Ambiguous value"):
        each = [] if of_hydra else ["To train with each value, pass -m"]  # a sweep has one value of hydra's keys
        if key == "hook":
            each.append(f"To select all of these options, use hook=[{value}]")
        elif not places.options(key):
            as_text = quote(f'{added}="{value}"')
            each.append(f"A list is {added}=[{value}]; a string is {as_text}")
        return ConfigError(key, value, ". ".join(["one value", *each]))
    if "requires --multirun" in text:
        hint = "" if of_hydra else "-m starts a sweep."
        if hint and "interval" in value:
            hint += " A range, interval(…), needs a sweeper that samples from it, such as hydra/sweeper=search."
        return ConfigError(key, value, "one value", hint=hint)
    return None


def _explain_interval(error: HydraException, overrides: Sequence[str]) -> ConfigError | None:
    """Explain a range of numbers for a sweeper that accepts only values."""
    if "does not support sweep type" not in str(error):
        return None
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_interval_sweep():
            hint = "To search a range of numbers, use hydra/sweeper=search."
            given = str(override.input_line).partition("=")[2]
            return ConfigError(override.key_or_group, given, SWEPT_VALUES, hint=hint)
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
    reason = first_line(error)
    has_no_reason = reason.startswith(("Error parsing override", "Error when parsing", "LexerNoViableAlt"))
    if not equals and not key.startswith("~"):
        return "it has no value. Expected KEY=VALUE, or ~KEY to remove a key."
    if equals and (has_no_reason or not set(value) & set("[](){}'\"$")):
        line = f'{key}="{value}"'
        try:
            OverridesParser.create().parse_override(line)
        except HydraException:
            pass
        else:
            return f"a string with these characters must be quoted: {quote(line)}."
    return "Hydra cannot parse it." if has_no_reason else f"{reason.rstrip('.')}."


def _deepest(cfg: DictConfig, key: str) -> tuple[DictConfig, str, str]:
    """Return the deepest existing node on the path `key`, the key of this node, and the rest of `key`."""
    parts = key.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        parent = ".".join(parts[:depth])
        node = OmegaConf.select(cfg, parent, throw_on_missing=False, throw_on_resolution_failure=False)
        if isinstance(node, DictConfig):
            return node, parent, parts[depth]
    return cfg, "", parts[0]


def _explain_choice(overrides: Sequence[str], places: ConfigPlaces) -> TrainyardError | None:
    """Explain `group=null` or `group=<number>`: neither is the name of an option."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override() or override.is_delete():
            continue  # these have values of other kinds
        options = places.options(override.key_or_group)
        if options and not _is_choice(override.value()):
            key, given = override.key_or_group, override.value()
            hint = f"To select none, pass '~{key}'." if given is None and key in OPTIONAL else ""
            if given is None and key == "hook":
                hint = "To select none, use hook=[]."
            return ConfigError(key, given, f"one of {', '.join(options)}", options=options, hint=hint)
    return None


def _is_choice(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _composed_without(key: str, overrides: Sequence[str], places: ConfigPlaces) -> tuple[DictConfig, list[str]]:
    """Return the config composed from the other overrides, and its groups."""
    others = [entry for entry in overrides if entry.lstrip("+~").split("=")[0] != key]
    single = _of_one_value(others)
    options = [entry for entry in single if places.options(re.split("[=@]", entry.lstrip("+~"))[0])]
    for attempt in (others, single, options, []):  # another override may be invalid, too
        try:
            cfg = places.compose(attempt, with_hydra=True)
        except (HydraException, OmegaConfBaseException):
            continue
        return cfg, [str(group) for group in cfg.hydra.runtime.choices]
    return DictConfig({}), []


def _of_one_value(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without sweep overrides, which give a key several values."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [str(override.input_line) for override in parsed if not override.is_sweep_override()]
