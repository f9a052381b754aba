"""Grid of a sweep: the overrides of each job, made of those of the command line."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, Override
from hydra.errors import HydraException

from trainyard.errors import ConfigError


def combinations(overrides: Sequence[Override], is_group: Callable[[str], bool]) -> list[list[str]]:
    """Return the overrides of every job: each combination of the values that the overrides list.

    Several overrides of one key have the effect that they have in a single run: mappings are merged, also into the
    option that is chosen for a group; of other values the last one counts, so that the ones before it are left out.

    Args:
        overrides: those of the command line, in order.
        is_group: whether a key is a config group.

    Raises:
        ConfigError: a pattern (`glob(adm*)`) fits no option.
        HydraException: an override lists no discrete values (`interval(0,1)`), which only other sweepers can use.
    """
    for override in overrides:
        if isinstance(override.value(), Glob) and not _values(override):
            options = override.config_loader.get_group_options(override.key_or_group) if override.config_loader else []
            given = (override.input_line or "").partition("=")[2]
            raise ConfigError(
                override.key_or_group, given, f"a pattern that fits an option: {', '.join(options)}", options=options
            )
    kept: list[tuple[Override, list[str]]] = []
    for override in overrides:
        key = override.get_key_element()
        if not _has_mappings(override):
            group = is_group(override.key_or_group)
            kept = [one for one in kept if one[0].get_key_element() != key or (group and _has_mappings(one[0]))]
        kept.append((override, [f"{key}={value}" for value in _values(override)]))
    return [list(lines) for lines in itertools.product(*(lines for _, lines in kept))]


def _values(override: Override) -> Sequence[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        kind = getattr(override.value_type, "name", "")
        raise HydraException(f"GridSweeper does not support sweep type : {kind}")
    return list(override.sweep_string_iterator())


def _has_mappings(override: Override) -> bool:
    value: Any = override.value()
    return any(isinstance(each, dict) for each in (value.list if isinstance(value, ChoiceSweep) else [value]))
