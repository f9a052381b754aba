"""Stacked schedules: one table whose rows hold each member's numbers, as tensors `[K]`."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, OneCycleLR, StepLR

from trainyard.checks import is_number
from trainyard.errors import Unfusable
from trainyard.schedules import Plateau, Schedule, Several, floors
from trainyard.schedules.part import Part
from trainyard.schedules.standin import plain

ROWS = 64
"""Number of rows that are stacked at a time."""

StackedRow: TypeAlias = list[dict[str, Tensor | tuple[Tensor, ...]]]
Floats: TypeAlias = npt.NDArray[np.float64]

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


def stack_schedules(schedules: Sequence[Schedule | Plateau | None]) -> StackedSchedule | StackedPlateau | None:
    """Return one schedule for K members.

    Args:
        schedules: the members' own, each bound to its own optimizer; None for a member without.

    Returns:
        None where no member has one.

    Raises:
        Unfusable: the schedules differ in kind, in unit or in the number of parameter groups.
    """
    present = [schedule for schedule in schedules if schedule is not None]
    if not present:
        return None
    plateaus = [schedule for schedule in present if isinstance(schedule, Plateau)]
    tables = [schedule for schedule in present if isinstance(schedule, Schedule)]
    if len(plateaus) == len(schedules):
        return StackedPlateau(plateaus)
    if len(tables) == len(schedules):
        return StackedSchedule(tables)
    kinds = sorted({"none" if schedule is None else type(schedule).__name__ for schedule in schedules})
    raise Unfusable(f"the members' schedules are of different kinds: {', '.join(kinds)}")


class StackedSchedule:
    """`Schedule` for K members.

    The values are those of the members' own schedules, bit for bit. Members whose schedules differ in nothing but
    numbers that torch's schedulers treat element by element (learning rates above all) are run together, on arrays, so
    that a row costs about the same for one member and for a thousand; the others are run one by one.

    Args:
        schedules: the members' own, bound.

    Attributes:
        by: their unit.
        constant: nothing ever changes, for any member: the rows are empty.

    Raises:
        Unfusable: they differ in unit or in the number of parameter groups.
    """

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        _check_one("units", [schedule.by for schedule in schedules])
        _check_one("numbers of parameter groups", [len(schedule._groups) for schedule in schedules])
        self.by = schedules[0].by
        self.constant = all(schedule.constant for schedule in schedules)
        self._members = list(schedules)
        alike: dict[Hashable, dict[tuple[float, ...], Schedule]] = {}
        signatures = [_signature(schedule) for schedule in schedules]
        for schedule, (kind, numbers) in zip(schedules, signatures, strict=True):
            alike.setdefault(kind, {}).setdefault(numbers, schedule)
        self._tables = [_together(list(columns.values())) for columns in alike.values()]
        table_of = {kind: number for number, kind in enumerate(alike)}
        column_of = {kind: {numbers: number for number, numbers in enumerate(alike[kind])} for kind in alike}
        # Table of each member, and its column there.
        self._where = np.array([(table_of[kind], column_of[kind][numbers]) for kind, numbers in signatures])
        self._first = 0
        self._rows: list[StackedRow] = []
        self._series: list[dict[str, list[Floats]]] = []
        self._last: dict[tuple[int, str], tuple[Tensor, ...]] = {}

    def row(self, index: int) -> StackedRow:
        """Return what each parameter group must hold during epoch or iteration `index`, for every member.

        A dict per group: float64 CPU tensors `[K]`, or tuples of them. It has the keys that any member's schedule
        changes; a key that a member's own does not change holds the optimizer's initial value. A tensor is the object
        of the row before if its values are equal. Do not modify the row.
        """
        offset = index - self._first
        if not 0 <= offset < len(self._rows):
            offset = index % ROWS
            self._grow(index - offset)
        return self._rows[offset]

    def ahead(self, index: int) -> Sequence[StackedRow]:
        """Return the row of `index` and those after it that are made already (see `row`); at least that one."""
        self.row(index)
        return self._rows[index - self._first :]

    def member(self, k: int) -> Schedule:
        """Return member k's own schedule, as of now, for its state. The state is that of a single run."""
        number, column = self._where[k]
        table, solo = self._tables[number], self._members[k]
        if isinstance(table, _Table):
            table.bring(solo, int(column))
        return solo

    def keep(self, index: Tensor) -> None:
        """Keep only the members at `index`, int64."""
        kept = index.cpu().numpy()
        self._members = [self._members[k] for k in kept]
        self._where = self._where[kept]
        self._series = [{key: [part[:, kept] for part in parts] for key, parts in one.items()} for one in self._series]
        self._last = {}
        self._rows = self._stacked() if self._rows else []

    def _grow(self, first: int) -> None:
        """Read the block of rows that begins at `first`."""
        series: list[dict[str, list[Floats]]] = [{} for _ in self._members[0]._groups]
        for number, table in enumerate(self._tables):
            places = np.flatnonzero(self._where[:, 0] == number)
            if not len(places):
                continue  # its members have left
            columns = self._where[places, 1]
            rows = [table.row(index) for index in range(first, first + ROWS)]
            for group, into in enumerate(series):
                for key in rows[-1][group]:
                    base = table._groups[group][key]
                    values = [row[group].get(key, base) for row in rows]
                    parts = zip(*values, strict=True) if isinstance(base, tuple) else [values]
                    if key not in into:
                        into[key] = self._untouched(group, key)
                    for filled, part in zip(into[key], parts, strict=True):
                        for out, value in zip(filled, part, strict=True):
                            out[places] = value[columns] if isinstance(value, np.ndarray) else value
        self._series = series
        self._rows = self._stacked()
        self._first = first

    def _untouched(self, group: int, key: str) -> list[Floats]:
        """Return `[ROWS, K]` for each number under `key`, as the optimizers began with them."""
        held = np.array([schedule._groups[group][key] for schedule in self._members], dtype=np.float64)
        return [np.tile(column, (ROWS, 1)) for column in held.reshape(len(held), -1).T]

    def _stacked(self) -> list[StackedRow]:
        """Return the rows of `_series` as tensors, with the tensors of the row before where nothing changes."""
        rows: list[StackedRow] = [[{} for _ in self._series] for _ in range(ROWS)]
        for group, numbers in enumerate(self._series):
            for key, parts in numbers.items():
                nested = isinstance(self._members[0]._groups[group][key], tuple)
                before = self._last.get((group, key))
                columns = [_objects(part, before[i] if before else None) for i, part in enumerate(parts)]
                for row, value in zip(rows, zip(*columns, strict=True), strict=True):
                    if before is None or any(one is not other for one, other in zip(value, before, strict=True)):
                        before = value
                    row[group][key] = before if nested else before[0]
                assert before is not None
                self._last[group, key] = before
        return rows


class StackedPlateau:
    """`Plateau` for K members, each with its own history.

    Args:
        plateaus: the members' own, bound.

    Attributes:
        monitor: the metric's name; None for the run's objective.

    Raises:
        Unfusable: they differ in what they monitor, in unit or in the number of parameter groups.
    """

    constant = False

    def __init__(self, plateaus: Sequence[Plateau]) -> None:
        _check_one("metrics to monitor", [plateau.monitor for plateau in plateaus])
        _check_one("units", [plateau.by for plateau in plateaus])
        self.by = plateaus[0].by
        _check_one("numbers of parameter groups", [len(plateau.row(0)) for plateau in plateaus])
        _check_one("numbers to lower", [", ".join(plateau.row(0)[0]) for plateau in plateaus])
        self.monitor = plateaus[0].monitor
        self._members = list(plateaus)
        self._row: StackedRow = []
        self._current = False
        self._at = 0

    def row(self, index: int) -> StackedRow:
        """Return what each parameter group must hold now, in epoch or iteration `index` of a warm-up.

        `[{"lr": float64 CPU [K]}, ...]`; a tensor is the object of the previous call if its values are equal.
        """
        at = min(index, max(plateau.warmed for plateau in self._members))
        if not self._current or at != self._at:
            self._at = at
            rows = [plateau.row(index) for plateau in self._members]
            before = self._row or [{} for _ in rows[0]]
            self._row = [
                {key: _stacked([row[group][key] for row in rows], before[group].get(key)) for key in held}
                for group, held in enumerate(rows[0])
            ]
            self._current = True
        return self._row

    def observe(self, *values: float) -> None:
        """Update each member with the metric's next value."""
        for plateau, value in zip(self._members, values, strict=True):
            plateau.observe(value)
        self._current = False

    def member(self, k: int) -> Plateau:
        """Return member k's own plateau for its state, as of now: the next row is read from it anew."""
        self._current = False
        return self._members[k]

    def keep(self, index: Tensor) -> None:
        """Keep only the members at `index`, int64."""
        self._members = [self._members[k] for k in index.tolist()]
        self._row = []
        self._current = False


class _Table(Schedule):
    """Schedules that differ in `_places` alone, run as one: what differs is an array `[M]`, and so are the rows.

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
        """Advance one of the schedules to the block of rows at which this one is."""
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


def _together(schedules: Sequence[Schedule]) -> Schedule:
    # The behavior of a subclass is unknown: it is never run together with others.
    return _Table(schedules) if type(schedules[0]) in _OURS else schedules[0]


def _signature(schedule: Schedule) -> tuple[Hashable, tuple[float, ...]]:
    """Return what schedules must have in common to run together, and the numbers in which they may then differ."""
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
    """Return `value` as a hashable that is equal only if it is; a value without comparison is equal to itself alone."""
    if isinstance(value, Mapping):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    try:
        hash(value)
    except TypeError:
        return id(value)
    return cast(Hashable, value)


def _objects(table: Floats, before: Tensor | None) -> list[Tensor]:
    """Return the rows of `[ROWS, K]` as tensors; a row that is equal to the one before it is the same object."""
    rows = list(torch.from_numpy(table).unbind(0))
    if before is not None and torch.equal(before, rows[0]):
        rows[0] = before
    for index, changes in enumerate(np.any(table[1:] != table[:-1], axis=1).tolist(), 1):
        if not changes:
            rows[index] = rows[index - 1]
    return rows


def _stacked(values: Sequence[Any], before: Any) -> Any:
    """Return the members' values as `[K]`, or a tuple of such; equal values reuse the previous tensor."""
    if isinstance(values[0], tuple):
        held = before or [None] * len(values[0])
        return tuple(_stacked(part, old) for part, old in zip(zip(*values, strict=True), held, strict=True))
    stacked = torch.tensor(values, dtype=torch.float64)
    return before if before is not None and torch.equal(before, stacked) else stacked


def _column(value: Any, column: int) -> Any:
    """Return a nest of arrays with one column of each, as a number."""
    if isinstance(value, np.ndarray):
        return float(value[column])
    if isinstance(value, Mapping) and not isinstance(value, Counter):
        return {key: _column(item, column) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_column(item, column) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def _check_one(what: str, values: Sequence[Any]) -> None:
    if len(set(values)) > 1:
        raise Unfusable(f"the members' schedules have different {what}: {', '.join(map(str, dict.fromkeys(values)))}")
