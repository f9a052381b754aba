"""Namesakes: options of `hook` that are selected together but define the same hook differently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from trainyard.config.config_files import Sources, read_config, sources_of
from trainyard.config.plain import plain
from trainyard.errors import ConfigError


@dataclass(frozen=True)
class _Lost:
    """A value that a later file resets.

    Attributes:
        key: the key of the value.
        value: the value in `file`, which the chosen option `option` includes.
        back: the value in `by`, a file that also comes before `file`; the chosen option `later` includes it again.
    """

    key: str
    value: Any
    file: str
    option: str
    back: Any
    by: str
    later: str


class _File(NamedTuple):
    """A config file at one place of the merge order."""

    option: str  # the chosen option that includes the file
    name: str
    hooks: Mapping[str, Any]


def check_hook_names(cfg: DictConfig) -> None:
    """Check that no selected option of `hook` silently reverts a value of another one.

    Hydra merges the files of all chosen options, in order, and each option includes `default`. Therefore

    - of two hooks with the same name and different `_target_`, one would be lost. A file that replaces a hook of
      another file must have that file in its defaults list.
    - a value of a file is reset if a later option includes a file that came before it.

    Outside a Hydra job there is nothing to check.

    Args:
        cfg: the composed config.

    Raises:
        ConfigError: an option undoes another; the message names both files.
    """
    if not HydraConfig.initialized():
        return
    hydra = HydraConfig.get()
    sources = sources_of(hydra)
    options = chosen_hooks(hydra, sources)
    if not options or options == ("default",):
        return
    lost = _lost(options, sources)
    if lost:
        raw: Any = OmegaConf.to_container(cfg, resolve=False)
        overridden = _overridden(hydra)
        for each in lost:
            if each.key not in overridden and _is_set_back(each, raw):
                again = f"hook/{each.by}.yaml resets the key"
                if each.later != each.by:
                    again = f"{each.later} includes hook/{each.by}.yaml again, which resets the key"
                way = f"Choose {each.option} after {each.later}, or set"
                if each.option == each.later:
                    own = "_self_" if each.file == each.option else each.file
                    way = f"Name {own} last in the defaults list of hook/{each.option}.yaml, or set"
                if _loses_others_if_last(each, options, sources, overridden):
                    way = "Set"
                back = "a hook" if each.key.count(".") == 1 else repr(each.back)  # the first: a hook that was removed
                raise ConfigError(
                    each.key,
                    each.value,
                    f"{back}, because hook/{each.file}.yaml is not the last file that sets this key: {again}",
                    hint=f"{way} {each.key} on the command line.",
                )


def chosen_hooks(hydra: Any, sources: Sources) -> tuple[str, ...]:
    """Return the selected options of `hook`.

    Hydra records only a single choice. Several choices are read from the place at which they were selected.
    """
    given: Any = plain(hydra.overrides._get_node("task"))  # as given, with interpolations unresolved
    own = [entry for entry in given if entry.startswith("hook=")]
    if own and own[-1].startswith("hook=["):
        return _listed(own[-1])
    choices: Any = plain(hydra.runtime._get_node("choices"))
    if "hook" in choices:
        return () if choices["hook"] is None else (str(choices["hook"]),)
    files = [f"{group}/{option}" for group, option in choices.items() if option and not group.startswith("hydra/")]
    return _listed_in((str(hydra.job.config_name), *files), sources)


def _overridden(hydra: Any) -> set[str]:
    """Return the keys that the overrides of the current job set."""
    given: Any = plain(hydra.overrides._get_node("task"))
    return {entry.partition("=")[0].lstrip("+") for entry in given}


@lru_cache(maxsize=64)
def _listed(override: str) -> tuple[str, ...]:
    options: Any = OverridesParser.create().parse_override(override).value()
    return tuple(map(str, options))


@lru_cache(maxsize=64)
def _listed_in(files: tuple[str, ...], sources: Sources) -> tuple[str, ...]:
    found: tuple[str, ...] = ()
    for file in files:
        for entry in _read(file, sources).get("defaults") or ():
            for group, options in entry.items() if isinstance(entry, Mapping) else ():
                if str(group).removeprefix("override ").lstrip("/") == "hook" and isinstance(options, list):
                    found = tuple(map(str, options))
    return found


@lru_cache(maxsize=64)
def _lost(options: tuple[str, ...], sources: Sources) -> tuple[_Lost, ...]:
    """Return the values that later files reset.

    Raises:
        ConfigError: two hooks have the same name.
    """
    return _lost_in(_order(options, sources), sources)


def _order(options: tuple[str, ...], sources: Sources) -> list[_File]:
    return [file for option in options for file in _merged(option, option, sources)]


def _loses_others_if_last(lost: _Lost, options: tuple[str, ...], sources: Sources, overridden: set[str]) -> bool:
    """Return whether other values are lost if the files that set a lost value are merged last."""
    moved = list(_merged(lost.option if lost.option != lost.later else lost.file, lost.option, sources))
    if lost.file == lost.option == lost.later:  # `_self_`
        moved = [file for file in moved if file.name == lost.file]
    order = _order(options, sources)
    first = next((at for at in range(len(order)) if order[at : at + len(moved)] == moved), len(order))
    order = [*order[:first], *order[first + len(moved) :], *moved]
    hooks: dict[str, Any] = {}
    for file in order:
        _merge(hooks, file.hooks)
    try:
        others = [other for other in _lost_in(order, sources) if other not in _lost(options, sources)]
    except ConfigError:  # in this order, two hooks have the same name
        return True
    return any(other.key not in overridden and _is_set_back(other, {"hook": hooks}) for other in others)


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = into.get(key)
            into[key] = dict(inner) if isinstance(inner, Mapping) else {}
            _merge(into[key], value)
        else:
            into[key] = value


def _lost_in(order: list[_File], sources: Sources) -> tuple[_Lost, ...]:
    """Return the values that later files of a merge order reset; see `_lost`."""
    lost: list[_Lost] = []
    writes: dict[tuple[str, ...], tuple[int, Any]] = {}  # by key: the last file that has it, and its value there
    for index, file in enumerate(order):
        for key, value in _leaves(file.hooks):
            for depth in range(1, len(key) + 1):
                at, before = writes.get(key[:depth], (index, value))
                other = order[at]
                if other.name == file.name or (depth == len(key) and before == value):
                    continue
                path = ".".join(("hook", *key[:depth]))
                if any(earlier.name == file.name for earlier in order[:at]):
                    lost.append(_Lost(path, before, other.name, other.option, value, file.name, file.option))
                elif key[1:] == ("_target_",) and other.name not in _included(file.name, sources):
                    raise ConfigError(
                        f"hook.{key[0]}",
                        value,
                        f"only one hook with this name: hook/{other.name}.yaml has {before}",
                        hint=f"Rename the hook in hook/{file.name}.yaml. Or, to replace the hook of "
                        f"hook/{other.name}.yaml, put `defaults: [{other.name}, _self_]` "
                        f"at the top of hook/{file.name}.yaml.",
                    )
            writes[key] = index, value
    return tuple(lost)


def _merged(name: str, option: str, sources: Sources, within: tuple[str, ...] = ()) -> Iterator[_File]:
    """Yield a file and the files that it includes, in the order in which they are merged."""
    content = _read(f"hook/{name}", sources)
    own = _File(option, name, {key: value for key, value in content.items() if key != "defaults"})
    entries = [entry for entry in content.get("defaults") or () if isinstance(entry, str)]
    for entry in entries if "_self_" in entries else [*entries, "_self_"]:
        other = entry.removeprefix("/hook/")
        if entry == "_self_":
            yield own
        elif other not in (name, *within):
            yield from _merged(other, option, sources, (name, *within))


def _included(name: str, sources: Sources) -> set[str]:
    return {file.name for file in _merged(name, name, sources)}


def _leaves(value: Mapping[str, Any], key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, entry in value.items():
        if isinstance(entry, Mapping) and entry:
            yield from _leaves(entry, (*key, str(name)))
        else:
            yield (*key, str(name)), entry


def _is_set_back(lost: _Lost, config: Any) -> bool:
    """Return whether the composed config has the reset value; an experiment or the command line may have changed it."""
    found = config
    for name in lost.key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return False
        found = found[name]
    if lost.value is None:  # a hook that was removed
        return found is not None
    return _is_same(lost.back, found) and not _is_same(lost.value, found)


def _is_same(written: Any, found: Any) -> bool:
    if isinstance(written, str) and isinstance(found, float):  # YAML reads 1e-3 as text, OmegaConf as a number
        try:
            return float(written) == found
        except ValueError:
            return False
    return bool(written == found)


def _read(name: str, sources: Sources) -> dict[str, Any]:
    """Return the content of a config file; only the defaults if a hook's file has `@package`."""
    content, text = read_config(name, sources)
    return {"defaults": content.get("defaults")} if name.startswith("hook/") and "@package" in text else content
