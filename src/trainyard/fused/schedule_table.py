"""Schedules that run together: the properties that they must share, and the numbers that may differ."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, cast

import numpy as np
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, OneCycleLR, StepLR

from trainyard.checks import is_number
from trainyard.schedules import Schedule, Several, floors
from trainyard.schedules.part import Part
from trainyard.schedules.standin import plain

# Arguments that torch's schedulers only add to, subtract from, multiply and divide by the numbers of a group.
# Arrays of them, and of the numbers, give the same results as numbers, bit for bit. (Powers would not.)
_ELEMENTWISE: dict[Any, tuple[str, ...]] = {
    CosineAnnealingLR: ("eta_min",),
    floors.CosineAnnealingLR: ("eta_min",),
    ExponentialLR: ("gamma",),
    OneCycleLR: ("max_lr", "div_factor", "final_div_factor"),
    StepLR: ("gamma",),
}
_OURS = (Schedule, Several)
_Place: TypeAlias = tuple[str, int, str]  # "part" or "group", its index, and the name there


class Table(Schedule):
    """Schedules that differ only in `_places` and run together: the numbers that differ are arrays `[M]`, and so are
    the rows.

    Args:
        schedules: M of them, bound.
    """

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        vars(self).update(vars(schedules[0]))
        self._groups = [dict(group) for group in self._groups]
        keywords = [dict(part.keywords) for part in _parts(self)]
        numbers = [_places(schedule) for schedule in schedules]
        for place in numbers[0]:
            values = [given[place] for given in numbers]
            if len(set(values)) > 1:
                kind, index, name = place
                holder = self._groups if kind == "group" else keywords
                holder[index][name] = np.array(values, dtype=np.float64)
        left = iter(keywords)
        self._windows = [
            replace(window, turns=tuple(replace(t, part=replace(t.part, keywords=next(left))) for t in window.turns))
            for window in self._windows
        ]
        self._written = {window.param: {"lr"} for window in self._windows}
        self._restart()

    def bring(self, schedule: Schedule, column: int) -> None:
        """Advance one of the schedules to the current block of rows."""
        if self._at_first is None or self._first <= schedule.state_dict()["first"]:
            return
        try:
            at_first = plain(_column(self._at_first, column))
        except TypeError:  # as in Schedule: it is stepped from the beginning
            return
        schedule.load_state_dict({**schedule.state_dict(), "first": self._first, "at_first": at_first})

    @staticmethod
    def _copied(value: Any) -> Any:
        return copy.deepcopy(value)


def together(schedules: Sequence[Schedule]) -> Schedule:
    # The behavior of a subclass is unknown: it is never run together with others.
    return Table(schedules) if type(schedules[0]) in _OURS else schedules[0]


def signature(schedule: Schedule) -> tuple[Hashable, tuple[float, ...]]:
    """Return the properties that schedules must share to run together, and the numbers that may differ."""
    if type(schedule) not in _OURS:
        return id(schedule), ()
    places = _places(schedule)
    parts = [
        (part.key, _frozen(part.make), {n: v for n, v in part.keywords.items() if ("part", i, n) not in places})
        for i, part in enumerate(_parts(schedule))
    ]
    groups = [
        {name: None if ("group", i, name) in places else value for name, value in group.items()}
        for i, group in enumerate(schedule._groups)
    ]
    windows = [
        (w.param, w.first, w.last, w.stride, w.together, [(turn.begin, turn.length) for turn in w.turns])
        for w in schedule._windows
    ]
    # A scheduler of torch's reads which keys are in the defaults; another one may read their values.
    defaults = list(schedule._defaults) if _is_torchs(schedule) else schedule._defaults
    return _frozen([tuple(places), parts, groups, schedule._length, windows, defaults]), tuple(places.values())


def _places(schedule: Schedule) -> dict[_Place, float]:
    """Return the numbers of a schedule that may be arrays, by place: an argument of a part, a number of a group.

    Code tests whether there is a momentum, so it stays a number.
    """
    if not _is_torchs(schedule):
        return {}
    found: dict[_Place, float] = {}
    for index, part in enumerate(_parts(schedule)):
        for name in _ELEMENTWISE.get(part.make, ()):
            if is_number(part.keywords.get(name)):
                found["part", index, name] = float(part.keywords[name])
    for index, group in enumerate(schedule._groups):
        for name, value in group.items():
            if is_number(value) and name != "momentum":
                found["group", index, name] = float(value)
    return found


def _parts(schedule: Schedule) -> list[Part]:
    return [turn.part for window in schedule._windows for turn in window.turns]


def _is_torchs(schedule: Schedule) -> bool:
    return all(part._torchs for part in _parts(schedule))


def _frozen(value: Any) -> Hashable:
    """Return `value` as a hashable object that is equal only for equal values; a value without comparison is equal only
    to itself."""
    if isinstance(value, Mapping):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return cast(Hashable, value)


def _column(value: Any, column: int) -> Any:
    """Return a nest of arrays with one column of each array as a number."""
    if isinstance(value, np.ndarray):
        return float(value[column])
    if isinstance(value, Mapping) and not isinstance(value, Counter):
        return {key: _column(item, column) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_column(item, column) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value
