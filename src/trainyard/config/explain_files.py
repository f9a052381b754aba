"""Explanations of Hydra's errors about the content of config files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, KeyValidationError, OmegaConfBaseException
from yaml.reader import Reader, ReaderError  # type: ignore[import-untyped,unused-ignore]

from trainyard.config.config_files import ConfigFile, at
from trainyard.config.headers import check_header, explain_header, package_of
from trainyard.config.places import ConfigPlaces
from trainyard.errors import ConfigError, TrainyardError, first_line, quoted

EMPTY = "_dummy_empty_config_"
"""A primary config of Hydra's own, which contains nothing."""
_UNUSED_OVERRIDE = r"(?:Could not override|Invalid Defaults List override '[^']*'\.\s+No earlier Group Default for)"
"""Start of the message about an override of an absent group: of Hydra 1.3, and of Hydra 1.4."""
_DEFAULTS = ("Invalid defaults list", "Unsupported type in defaults", "Unsupported item value in defaults")
_MAPPING = "with one key, from a group to an option or to a list of options"
_ITEM = f"the name of a config, or a mapping {_MAPPING}"
_ITEMS = f"names of configs, and mappings {_MAPPING}"


def explain_file(error: Exception, places: ConfigPlaces) -> TrainyardError | None:
    """Explain an error about the content of a config file; return None if this is another error.

    Args:
        error: the error raised by the composition.
        places: the places of the configs.
    """
    text = str(error)
    if isinstance(error, UnicodeDecodeError | ReaderError):
        return _explain_encoding(places)
    if isinstance(error, OSError) and text.startswith("Invalid loaded object type"):
        return _first(places, _no_mapping)
    if isinstance(error, RecursionError):
        return _includes_itself(places) or TrainyardError(
            "The configs cannot be composed: they include each other in a circle, or contain a value that is nested "
            "too deeply."
        )
    if "Index 'searchpath'" in f"{text} {error.__cause__}":
        return _first(places, partial(_no_settings_of_hydra, kind=list))
    if isinstance(error, AttributeError) and "'_set_flag'" in text:
        return _first(places, partial(_no_settings_of_hydra, kind=type(None)))
    if isinstance(error, ValueError) and (text.startswith(_DEFAULTS) or "Too many keys in default item" in text):
        return _first(places, _bad_defaults)
    if isinstance(error, ValueError):
        return explain_header(error, places)
    return _explain_composition(error, text, places) if isinstance(error, ConfigCompositionException) else None


def _explain_composition(error: Exception, text: str, places: ConfigPlaces) -> TrainyardError | None:
    if not text and error.__cause__ is not None:
        of_file = None
        if isinstance(error.__cause__, KeyValidationError):
            of_file = _first(places, _null_key)
        elif isinstance(error.__cause__, GrammarParseError):
            of_file = _first(places, partial(_bad_interpolation, told=_said(error.__cause__)))
        return of_file or TrainyardError(_said(error.__cause__))
    if found := re.match(rf"In '([^']+)': {_UNUSED_OVERRIDE} '([^'@]*)@?([^']*)'", text):
        return _explain_override(found[1], found[2], found[3], places)
    if found := re.match(r"In '([^']+)': \w+ raised while composing config:\n(.*)", text):
        return _explain_merge(found[1], found[2], text, places)
    if found := re.match(r"(\S+) appears more than once|Multiple values for (\S+)\.", text):
        group = found[1] or found[2]
        return TrainyardError(
            f"The defaults lists of the configs select an option of {group} twice. To select another option in a "
            f"config that another config includes, write 'override /{group}: OPTION' instead of '/{group}: OPTION'."
        )
    if found := re.match(r"Duplicate _self_ defined in (\S+)", text):
        return TrainyardError(f"{_path(found[1], places)}: the defaults list contains _self_ more than once.")
    if found := re.match(r"Error merging override ([+~]*)([^=]*)=?(.*)", text, re.DOTALL):
        why = "Hydra does not accept it" if error.__cause__ is None else first_line(error.__cause__).rstrip(".")
        what = f"{found[2]} cannot be removed" if "~" in found[1] else f"{found[2]}: {quoted(found[3])} is invalid"
        return TrainyardError(f"{what}. {why}.")
    if found := re.match(r"primary config '([^']+)' must be a DictConfig", text):
        return TrainyardError(f"{_path(found[1], places)} contains a list. Expected a mapping of keys to values.")
    if found := re.match(r"In '([^']+)': (.*)", text):
        return TrainyardError(f"{_path(found[1], places)}: {found[2].rstrip('.')}.")
    return TrainyardError(f"{text.rstrip('.')}.") if text.startswith("Error resolving interpolation") else None


def _explain_override(name: str, group: str, package: str, places: ConfigPlaces) -> TrainyardError:
    """Explain an `override` of a group that is not in the defaults list, or has another package there."""
    file = places.find(name)
    entries: Any = []
    if file is not None:
        try:
            check_header(file)
        except TrainyardError as found:
            return found
        entries = file.content.get("defaults")
    groups = selected_groups(places)
    where = f"{_path(name, places)}: 'override {group}' is invalid"
    last = group.rpartition("/")[2]
    given = [str(key) for entry in entries or () if isinstance(entry, Mapping) for key in entry]
    if group in groups and any(re.fullmatch(rf"override\s+/?{re.escape(group)}@.+", key) for key in given):
        return TrainyardError(
            f"{where}, because the configs select {group} without a package (@…). Write 'override /{group}: OPTION'."
        )
    if group in groups and package:
        below = package.removesuffix("." + group.replace("/", "."))
        return TrainyardError(
            f"{where}, because the values of this file are placed below {below}. "
            "Write '# @package _global_' in the first line of the file."
        )
    if group not in groups and last in groups and last != group:
        return TrainyardError(
            f"{where}. Write 'override /{last}': without the /, the group is searched below this file."
        )
    accepted = f"a group that the configs select: {', '.join(sorted(groups))}"
    hint = f"To select an option of it, write /{group} without override." if places.options(group) else ""
    return ConfigError(f"{_path(name, places)}: override", group, accepted, options=() if hint else groups, hint=hint)


def _leaves(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the values below a key as text, each with its key."""
    if not isinstance(node, Mapping):
        yield key, str(node)
        return
    for name, value in node.items():
        yield from _leaves(value, f"{key}.{name}")


def _explain_merge(name: str, said: str, text: str, places: ConfigPlaces) -> TrainyardError:
    """Explain a value of a file that does not fit the value that it replaces."""
    where, file = _path(name, places), places.find(name)
    key = re.search(r"full_key: (\S+)", text)
    if key is not None:
        unknown = said.startswith("Key ") and " not in " in said
        return TrainyardError(f"{where}: {key[1]}: {'Hydra has no such setting' if unknown else said.rstrip('.')}.")
    if found := re.match(r"Merge error: \w+ is not a subclass of \w+\. value: (.*)", said):
        keys = (
            []
            if file is None
            else [key for key, value in _leaves(file.content.get("hydra"), "hydra") if value == found[1]]
        )
        if len(keys) == 1:
            return TrainyardError(f"{where}: {keys[0]}: {found[1]} is invalid. Expected a mapping of Hydra's settings.")
        return TrainyardError(
            f"{where}: the value {found[1]} replaces a mapping of Hydra's settings. Expected a mapping."
        )
    if file is not None and not isinstance(file.whole, Mapping):
        return TrainyardError(f"{where} contains a {type(file.whole).__name__}. Expected a mapping of keys to values.")
    if file is not None:
        groups = ((str(name), value) for name, value in file.content.items() if isinstance(value, list))
        lists = ((name, value) for name, value in groups if places.options(name))
        package = _package(file, name)
        replaced = chain.from_iterable(
            _replaced(file.content, base, package) for base in _bases(file, name, package, places)
        )
        for place, value in chain(replaced, () if package else lists):
            kind = "a list" if isinstance(value, list) else "a mapping"
            other = "a mapping" if isinstance(value, list) else "a list"
            return TrainyardError(f"{where}: {place}: {value!r} is invalid, because {kind} cannot replace {other}.")
    return TrainyardError(f"{where}: a list cannot replace a mapping, and a mapping cannot replace a list.")


def _replaced(value: Any, base: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each list that replaces a mapping, and each mapping that replaces a list."""
    if isinstance(value, Mapping) and isinstance(base, Mapping):
        for name, entry in value.items():
            yield from _replaced(entry, base.get(name), f"{key}.{name}" if key else str(name))
    elif (isinstance(value, list) and isinstance(base, Mapping)) or (
        isinstance(value, Mapping) and isinstance(base, list)
    ):
        yield key, value


def _package(file: ConfigFile, name: str) -> str:
    """Return the key below which the values of a file are placed; empty for the top level."""
    package = package_of(file.text)
    return "" if package == "_global_" else package.replace("_group_", name.rpartition("/")[0].replace("/", "."))


def _bases(file: ConfigFile, name: str, package: str, places: ConfigPlaces) -> Iterator[Any]:
    """Yield what the values of a file can replace: the part at its package of the config with each option that the file
    includes, and of the config without overrides."""
    group = name.rpartition("/")[0]
    options = [each.rpartition("/") for each in file.included(name)] if group else []
    overrides = [[f"{group}={option}"] for above, _, option in options if above == group]
    for given in (*overrides, []):
        base = _composed(places, given) or {"hydra": {"launcher": {}, "sweeper": {}}}  # mappings in each config
        yield at(base, package) if package else base


def _composed(places: ConfigPlaces, overrides: Sequence[str] = ()) -> Any:
    """Return the config with Hydra's node, in plain Python. If the primary config cannot be composed, this is a config
    that it includes; empty if none can be composed."""
    file = places.find(places.name.removesuffix(".yaml"))
    for name in (places.name, *(() if file is None else file.included(places.name))):
        try:
            return OmegaConf.to_container(replace(places, name=name).compose(overrides, with_hydra=True), resolve=False)
        except (HydraException, OmegaConfBaseException, ValueError, OSError):
            continue
    return {}


def selected_groups(places: ConfigPlaces) -> set[str]:
    """Return the groups that the configs select. If the primary config cannot be composed, these are the groups in its
    defaults list, those of the configs that it includes, and Hydra's own."""
    found = _selected(places)
    file = None if found else places.find(places.name.removesuffix(".yaml"))
    if file is None:
        return found
    entries = file.content.get("defaults")
    for entry in entries if isinstance(entries, list) else ():
        for key in map(str, entry) if isinstance(entry, Mapping) else ():
            if key != "optional" and not key.startswith("override "):
                found.add(key.removeprefix("optional ").strip().lstrip("/"))
    for name in (*file.included(places.name), EMPTY):
        found |= _selected(replace(places, name=name))
    return found


def _selected(places: ConfigPlaces) -> set[str]:
    """Return the groups of which the primary config selects an option; empty if it cannot be composed."""
    try:
        cfg: DictConfig = places.compose([], with_hydra=True)
    except (HydraException, OmegaConfBaseException, ValueError, OSError):
        return set()
    return {str(group) for group in cfg.hydra.runtime.choices}


def _said(error: BaseException) -> str:
    """Return the message of an error of OmegaConf as a sentence, after the key if there is one."""
    said = first_line(error)
    key = str(getattr(error, "full_key", "") or "")
    if isinstance(error, GrammarParseError):
        said = f"an interpolation is invalid: {said}"
    return f"{key}: {said.rstrip('.')}." if key else f"{said.rstrip('.')}."


def _path(name: str, places: ConfigPlaces) -> str:
    """Return the path of a config, or its name if it is in none of the folders."""
    file = places.find(name)
    return f"{name}.yaml" if file is None else str(file.path)


# -- files of the folders that cannot be composed ----------------------------------------------------------------------


def _first(places: ConfigPlaces, explain: Callable[[Path, Any], TrainyardError | None]) -> TrainyardError | None:
    """Return the first error that a function finds in the files of the folders, given their paths and contents."""
    for path in places.files():
        try:
            content = ConfigFile(path, path.read_text(encoding="utf-8")).whole
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            continue
        found = explain(path, content)
        if found is not None:
            return found
    return None


def _explain_encoding(places: ConfigPlaces) -> TrainyardError | None:
    """Return the error about the first file that is no text."""
    for path in places.files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            return TrainyardError(
                f"{path} is not encoded in UTF-8, from byte {error.start} on. Save the file in UTF-8."
            )
        except OSError:
            continue
        if found := Reader.NON_PRINTABLE.search(text):
            line = text.count("\n", 0, found.start()) + 1
            return TrainyardError(f"{path}, line {line}: YAML does not allow the character {found[0]!r}. Remove it.")
    return None


def _no_mapping(path: Path, content: Any) -> TrainyardError | None:
    if content is None or isinstance(content, Mapping | list | str):
        return None
    return TrainyardError(f"{path} contains the value {content!r}. Expected a mapping of keys to values.")


def _no_settings_of_hydra(path: Path, content: Any, kind: type) -> TrainyardError | None:
    if not isinstance(content, Mapping) or not isinstance(content.get("hydra", {}), kind):
        return None
    return ConfigError(f"{path}: hydra", content["hydra"], "a mapping of Hydra's settings")


def _null_key(path: Path, content: Any) -> TrainyardError | None:
    if not any(key is None for key in _keys(content)):
        return None
    return TrainyardError(
        f"{path} contains the key null, which YAML also reads from ~ and from an empty key. Quote this key."
    )


def _bad_interpolation(path: Path, content: Any, told: str) -> TrainyardError | None:
    """Return the error if the file contains the invalid interpolation of this message."""
    try:
        OmegaConf.create(content)
    except GrammarParseError as error:
        return TrainyardError(f"{path}: {told}") if _said(error) == told else None
    except OmegaConfBaseException:
        pass
    return None


def _keys(value: Any) -> Iterator[Any]:
    """Yield all keys of the mappings in a value."""
    if isinstance(value, Mapping):
        yield from value
    for entry in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _keys(entry)


def selecting(option: str, group: str, name: str, places: ConfigPlaces) -> Any:
    """Return the path of the file whose defaults list selects an option of a group; None if no known file does.

    Args:
        option: the option.
        group: the group.
        name: the config that Hydra names, which is searched first; the primary config is the second.
        places: the places of the configs.
    """
    first = (name, places.name.removesuffix(".yaml"))
    readers: list[Callable[[], ConfigFile | None]] = [partial(places.find, each) for each in first]
    readers += [partial(_read, path) for path in places.files()]
    for read in readers:
        try:
            file = read()
            entries = None if file is None else file.content.get("defaults")
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            continue
        if file is not None and any(
            f"/{group}/{option}".endswith(f"/{selected}")
            for entry in (entries if isinstance(entries, list) else ())
            for selected in _selections(entry)
        ):
            return file.path
    return None


def _read(path: Path) -> ConfigFile:
    return ConfigFile(path, path.read_text(encoding="utf-8"))


def _selections(entry: Any) -> Iterator[str]:
    """Yield the configs that an entry of a defaults list selects: `model/mlp` of `override /model: mlp`."""
    if isinstance(entry, str):
        yield entry.partition("@")[0].lstrip("/")
    for key, value in entry.items() if isinstance(entry, Mapping) else ():
        group = str(key).removeprefix("override ").strip().lstrip("/").partition("@")[0]
        yield from (f"{group}/{option}" for option in (value if isinstance(value, list) else [value]))


def _bad_defaults(path: Path, content: Any) -> TrainyardError | None:
    if not isinstance(content, Mapping) or "defaults" not in content:
        return None
    entries = content["defaults"]
    if not isinstance(entries, list):
        return ConfigError(f"{path}: defaults", entries, f"a list of {_ITEMS}")
    wrong = [entry for entry in entries if not _is_default(entry)]
    return ConfigError(f"{path}: an entry of defaults", wrong[0], _ITEM) if wrong else None


def _is_default(entry: Any) -> bool:
    if not isinstance(entry, Mapping):
        return isinstance(entry, str)
    values = [value for key, value in entry.items() if key != "optional"]
    options = values[0] if values and isinstance(values[0], list) else values
    return len(values) == 1 and all(isinstance(option, str) or option is None for option in options)


def _includes_itself(places: ConfigPlaces) -> TrainyardError | None:
    for folder in places.folders:
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            try:
                includes = [*ConfigFile(path, path.read_text(encoding="utf-8")).included(name)]
            except (OSError, ValueError, RecursionError, yaml.YAMLError):
                continue
            if name in includes:
                return TrainyardError(f"{path}: the defaults list includes the file itself.")
    return None
