"""Grid of a sweep: the overrides of each job, from the command line and `hydra.sweeper`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, RangeSweep
from omegaconf import DictConfig

from trainyard.config.explain import SWEPT_VALUES
from trainyard.errors import ConfigError
from trainyard.redaction import check_overrides
from trainyard.sweep.conditions import Conditions
from trainyard.sweep.grid_settings import BLOCKS, FILE, ZIP, GridSettings
from trainyard.sweep.job_file import JobFile

RANGE = "a range that contains a value"
RANGE_HINT = "range(start, stop, step) excludes stop. step must not be 0, and must be negative if stop is below start."
"""The accepted ranges, for messages."""

_Axis = list[dict[int, str]]  # what can be chosen together: the lines of some overrides, by their places in the command


def grid_jobs(
    lines: Sequence[str], settings: GridSettings, loader: ConfigLoader, master: DictConfig
) -> list[list[str]]:
    """Return the overrides of every job of a sweep.

    These are the combinations of the listed values, once for each block, with the overrides of the block after those of
    the command. Each combination is combined with each row of the file. Overrides that `when` excludes are omitted;
    equal jobs of several blocks, or jobs that are equal without these overrides, become one job.

    Args:
        lines: the overrides of the command line, and of the config (`hydra.sweeper.params`), in order.
        settings: the settings of the sweeper.
        loader: Hydra's loader.
        master: the config of the entire sweep.

    Raises:
        ConfigError: a setting, a pattern or the file is invalid.
        HydraException: an override cannot be parsed.
    """
    parser = OverridesParser.create(config_loader=loader)

    def is_group(key: str) -> bool:
        return bool(loader.get_group_options(key))

    common = parser.parse_overrides(list(lines))
    blocks = [[*common, *parser.parse_overrides(list(block))] for block in settings.blocks or ((),)]
    given = {key_of(override): override for block in blocks for override in block}
    rows = None if settings.file is None else JobFile.read(settings.file)
    if rows is not None:
        _check_columns(rows, given)
    check_overrides([line for block in settings.blocks for line in block] + (rows.lines if rows is not None else []))
    _check_zip(settings.zip, [effective(block, is_group) for block in blocks])
    jobs = [
        job
        for block in blocks
        for job in combinations(block, is_group, settings.zip, () if rows is None else rows.jobs)
    ]
    if settings.when:
        fixed = [str(each.input_line) for each in common if not each.is_sweep_override()]
        conditions = Conditions(settings.when, loader, master, fixed, [*given, *(rows.keys if rows else ())])
        jobs = [conditions.kept(job) for job in jobs]
    return _distinct(jobs) if settings.when or settings.blocks else jobs


def combinations(
    overrides: Sequence[Override],
    is_group: Callable[[str], bool],
    zipped: Sequence[Sequence[str]] = (),
    rows: Sequence[Sequence[str]] = (),
) -> list[list[str]]:
    """Return the overrides of every job: each combination of the values that the overrides list.

    Several overrides of one key have the same effect as in a single run: mappings are merged, also into the selected
    option of a group; of other values, only the last one counts.

    Args:
        overrides: the overrides of the command line, in order.
        is_group: whether a key is a config group.
        zipped: keys whose values are paired (the first of each, then the second) instead of combined.
        rows: overrides that belong together, one row for each job, after the others.

    Raises:
        ConfigError: a pattern (`glob(adm*)`) fits no option, zipped keys have different numbers of values, or an
            override is an `interval`, which only a search can use.
    """
    jobs = []
    for chosen in itertools.product(*_axes(effective(overrides, is_group), zipped, rows)):
        own: dict[int, str] = {}
        for part in chosen:
            own.update(part)
        jobs.append([own[place] for place in sorted(own)])
    return jobs


def effective(overrides: Sequence[Override], is_group: Callable[[str], bool]) -> list[Override]:
    """Return the effective overrides: mappings, and the last of the other overrides of each key.

    Raises:
        ConfigError: a pattern fits no option.
    """
    for override in overrides:
        if isinstance(override.value(), Glob) and not _values(override):
            options = override.config_loader.get_group_options(override.key_or_group) if override.config_loader else []
            given = (override.input_line or "").partition("=")[2]
            if not options:
                hint = "A pattern can only match the options of a group."
                accepted = f"{SWEPT_VALUES}, or with hydra/sweeper=search or pbt also interval(1,3)"
                raise ConfigError(override.key_or_group, given, accepted, hint=hint)
            raise ConfigError(
                override.key_or_group, given, f"a pattern that matches an option: {', '.join(options)}", options=options
            )
    kept: list[Override] = []
    for override in overrides:
        key = override.get_key_element()
        if not _has_mappings(override):
            group = is_group(override.key_or_group)
            kept = [one for one in kept if one.get_key_element() != key or (group and _has_mappings(one))]
        kept.append(override)
    return kept


def key_of(override: Override) -> str:
    """Return the key of an override without the sign that adds it."""
    return str(override.get_key_element()).lstrip("+")


def _axes(kept: Sequence[Override], zipped: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> list[_Axis]:
    behind = len(kept)
    axes: list[_Axis] = [[dict(enumerate(row, behind)) for row in rows]] if rows else []
    axis_of: dict[int, _Axis] = {}
    for place, override in enumerate(kept):
        key = override.get_key_element()
        own: _Axis = [{place: f"{key}={value}"} for value in _values(override)]
        number = next((number for number, keys in enumerate(zipped) if key_of(override) in keys), None)
        if number is None or len(own) < 2:
            axes.append(own)
        elif number not in axis_of:
            axis_of[number] = own
            axes.append(own)
        else:
            before = axis_of[number]
            if len(before) != len(own):
                counts = {key_of(each): len(_values(each)) for each in kept}
                told = ", ".join(f"{name} has {counts[name]} values" for name in zipped[number] if name in counts)
                raise ConfigError(ZIP, list(zipped[number]), "keys with the same number of values", hint=f"{told}.")
            for one, other in zip(before, own, strict=True):
                one.update(other)
    return axes


def _check_zip(zipped: Sequence[Sequence[str]], blocks: Sequence[Sequence[Override]]) -> None:
    """Check that the keys of each group are swept, and in a block either all of them or none.

    Raises:
        ConfigError: the check fails.
    """
    swept = [[key_of(each) for each in block if len(_values_or_none(each)) > 1] for block in blocks]
    options = list(dict.fromkeys(key for block in swept for key in block))
    for keys in zipped:
        for key in keys:
            if key not in options:
                accepted = f"keys with several values: {', '.join(options) or 'none in this sweep'}"
                raise ConfigError(ZIP, key, accepted, options=options)
        for number, block in enumerate(swept):
            here = [key for key in keys if key in block]
            if here and len(here) < len(keys):
                missing = ", ".join(key for key in keys if key not in block)
                hint = f"{BLOCKS}[{number}] has several values only for {', '.join(here)}."
                raise ConfigError(ZIP, list(keys), f"keys that all have several values, including {missing}", hint=hint)
            twice = next((key for key in keys if block.count(key) > 1), None)
            if twice is not None:
                hint = f"{twice} has several overrides with several values each."
                raise ConfigError(ZIP, twice, "a key whose values are listed in one override", hint=hint)


def _check_columns(rows: JobFile, given: Mapping[str, Override]) -> None:
    for key in rows.keys:
        if key in given:
            hint = f"Remove the override {given[key].input_line}, or remove the column from the file."
            raise ConfigError(
                FILE, str(rows.path), f"a file without {key}, which is also given as an override", hint=hint
            )


def _distinct(jobs: Sequence[list[str]]) -> list[list[str]]:
    """Return the jobs without later equal ones; the order of overrides does not count if each key is given once."""
    found: dict[tuple[str, ...], list[str]] = {}
    for job in jobs:
        once = len({line.partition("=")[0] for line in job}) == len(job) and not any("={" in line for line in job)
        found.setdefault(tuple(sorted(job) if once else job), job)
    return list(found.values())


def _values(override: Override) -> Sequence[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        given = str(override.input_line).partition("=")[2]
        hint = "To search a range of numbers, use hydra/sweeper=search."
        raise ConfigError(override.key_or_group, given, SWEPT_VALUES, hint=hint)
    value: Any = override.value()
    if not isinstance(value, RangeSweep):
        return list(override.sweep_string_iterator())
    found = [] if value.step == 0 else list(override.sweep_string_iterator())
    if not found:
        given = str(override.input_line).partition("=")[2]
        raise ConfigError(override.key_or_group, given, RANGE, hint=RANGE_HINT)
    return found


def _values_or_none(override: Override) -> Sequence[str]:
    return _values(override) if not override.is_sweep_override() or override.is_discrete_sweep() else []


def _has_mappings(override: Override) -> bool:
    value: Any = override.value()
    return any(isinstance(each, dict) for each in (value.list if isinstance(value, ChoiceSweep) else [value]))
