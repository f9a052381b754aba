"""Patterns with which a config selects modules and parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from trainyard.errors import ConfigError, some

SHOWN = 4  # names in a message


def pattern_list(key: str, given: Any) -> list[str]:
    """Return the patterns as a list; None means none.

    Raises:
        ConfigError: the value is not a list of strings.
    """
    if given is None:
        return []
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(each, str) for each in given):
        raise ConfigError(key, given, "a list of patterns (strings), or null")
    return list(given)


def fits(pattern: str, name: str, module: nn.Module | None = None) -> bool:
    """Return whether a pattern matches this full name (`net.blocks.*`, `*.attn`), or the class of this module."""
    return fnmatchcase(name, pattern) or (module is not None and fnmatchcase(type(module).__name__, pattern))


def fits_within(pattern: str, name: str) -> bool:
    """Return whether a pattern matches this full name, or the name of a module that contains it."""
    return any(fnmatchcase(above, pattern) for above in (name, *above_all([name])))


def above_all(names: Iterable[str]) -> list[str]:
    """Return the modules that contain these names: `net` and `net.0` for `net.0.weight`."""
    found: dict[str, None] = {}
    for name in names:
        words = name.split(".")
        found |= dict.fromkeys(".".join(words[:count]) for count in range(1, len(words)))
    return list(found)


def unknown(key: str, pattern: str, modules: Mapping[str, nn.Module], parameters: Iterable[str] = ()) -> ConfigError:
    """Return the error for a pattern that matches none of these modules and parameters."""
    kinds = dict.fromkeys(type(module).__name__ for module in modules.values())
    names = [name for name in modules if name]
    accepted = "a glob that matches a module's name or class" + (", or a parameter's name" if parameters else "")
    hint = f"Names of modules: {some(names, SHOWN)}. Classes: {some(kinds, SHOWN)}." if names else ""
    return ConfigError(key, pattern, accepted, options=[*names, *kinds, *parameters], hint=hint)
