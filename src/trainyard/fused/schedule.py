"""Stacked schedules: one table whose rows hold each member's numbers, as tensors `[K]`."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainyard.errors import Unfusable
from trainyard.fused.schedule_table import Table, signature, together
from trainyard.schedules import Plateau, Schedule

ROWS = 64
"""Number of rows that are stacked at a time."""

StackedRow: TypeAlias = list[dict[str, Tensor | tuple[Tensor, ...]]]
Floats: TypeAlias = npt.NDArray[np.float64]


def stack_schedules(schedules: Sequence[Schedule | Plateau | None]) -> StackedSchedule | StackedPlateau | None:
    """Return one schedule for K members.

    Args:
        schedules: the schedules of the members, each bound to its optimizer; None for a member without one.

    Returns:
        None if no member has one.

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

    The values are those of the members' own schedules, bit for bit. Members whose schedules differ only in numbers that
    torch's schedulers treat element by element (such as learning rates) are run together, on arrays. A row then costs
    about the same for one member and for a thousand. The others are run one by one.

    Args:
        schedules: the bound schedules of the members.

    Attributes:
        by: their unit.
        constant: whether no number changes for any member, so that the rows are empty.

    Raises:
        Unfusable: they differ in unit or in the number of parameter groups.
    """

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        _check_one("units", [schedule.by for schedule in schedules])
        _check_one("numbers of parameter groups", [len(schedule._groups) for schedule in schedules])
        self.by = schedules[0].by
        self.constant = all(schedule.constant for schedule in schedules)
        self._members = list(schedules)
        self._ahead = [0] * len(self._members)
        self._tables: list[tuple[Schedule, int]] = []
        """Schedules that run together, and the number of rows by which each is ahead of the stack."""
        self._where = np.zeros((len(self._members), 2), dtype=np.int64)
        """Table of each member, and its column there."""
        self._seat(range(len(self._members)))
        self._first = 0
        self._rows: list[StackedRow] = []
        self._series: list[dict[str, list[Floats]]] = []
        self._last: dict[tuple[int, str], tuple[Tensor, ...]] = {}

    def row(self, index: int) -> StackedRow:
        """Return the numbers of each parameter group during epoch or iteration `index`, for every member.

        A dict per group: float64 CPU tensors `[K]`, or tuples of them. It contains the keys that the schedule of any
        member changes; if the schedule of a member does not change a key, its value is the initial value of the
        optimizer. A tensor is the object of the previous row if its values are equal. Do not modify the row.
        """
        offset = index - self._first
        if not 0 <= offset < len(self._rows):
            offset = index % ROWS
            self._grow(index - offset)
        return self._rows[offset]

    def place(self, ahead: Sequence[int]) -> None:
        """Set how many rows each member is ahead of the stack's `index`; called before the first row is read."""
        if list(ahead) != self._ahead:
            self._ahead, self._tables = list(ahead), []
            self._seat(range(len(self._members)))
            self._rows, self._last = [], {}

    def put(self, schedules: Mapping[int, Schedule], ahead: Mapping[int, int]) -> None:
        """Give lanes to other members, from the next row on; the rows of the other lanes are not changed.

        Args:
            schedules: the bound schedules, by lane.
            ahead: for each lane, the number of rows by which each is ahead of the stack.

        Raises:
            Unfusable: they differ from the stack's in unit or in the number of parameter groups.
        """
        _check_one("units", [self.by, *(schedule.by for schedule in schedules.values())])
        counts = [len(self._members[0]._groups), *(len(schedule._groups) for schedule in schedules.values())]
        _check_one("numbers of parameter groups", counts)
        for k, schedule in schedules.items():
            self._members[k], self._ahead[k] = schedule, ahead[k]
        self.constant = all(schedule.constant for schedule in self._members)
        before = len(self._tables)
        self._seat(schedules)
        if self._rows:
            for group, numbers in enumerate(self._series):
                for key, parts in numbers.items():
                    own = self._untouched(group, key)
                    for filled, values in zip(parts, own, strict=True):
                        filled[:, [*schedules]] = values[:, [*schedules]]
            for number in range(before, len(self._tables)):
                self._fill(number, self._first)
            self._last = {}
            self._rows = self._stacked()

    def ahead(self, index: int) -> Sequence[StackedRow]:
        """Return the row of `index` and the following rows that already exist (see `row`)."""
        self.row(index)
        return self._rows[index - self._first :]

    def member(self, k: int) -> Schedule:
        """Return the current schedule of member k, for its state, which is that of a single run."""
        number, column = self._where[k]
        (table, _), solo = self._tables[number], self._members[k]
        if isinstance(table, Table):
            table.bring(solo, int(column))
        return solo

    def keep(self, index: Tensor) -> None:
        """Keep only the members at `index`, int64."""
        kept = index.cpu().numpy()
        self._members = [self._members[k] for k in kept]
        self._ahead = [self._ahead[k] for k in kept]
        self._where = self._where[kept]
        self._series = [{key: [part[:, kept] for part in parts] for key, parts in one.items()} for one in self._series]
        self._last = {}
        self._rows = self._stacked() if self._rows else []

    def _seat(self, places: Iterable[int]) -> None:
        """Create the tables of the members at these places."""
        alike: dict[Hashable, dict[tuple[float, ...], list[int]]] = {}
        for k in places:
            kind, numbers = signature(self._members[k])
            alike.setdefault((kind, self._ahead[k]), {}).setdefault(numbers, []).append(k)
        for columns in alike.values():
            firsts = [of_column[0] for of_column in columns.values()]
            for column, of_column in enumerate(columns.values()):
                self._where[of_column] = len(self._tables), column
            self._tables.append((together([self._members[k] for k in firsts]), self._ahead[firsts[0]]))

    def _grow(self, first: int) -> None:
        """Read the block of rows that begins at `first`."""
        if first < 0:
            raise IndexError(f"row {first}: rows are counted from 0")
        self._series = [{} for _ in self._members[0]._groups]
        for number in range(len(self._tables)):
            self._fill(number, first)
        self._rows = self._stacked()
        self._first = first

    def _fill(self, number: int, first: int) -> None:
        """Read the rows of a table for the block that begins at `first`."""
        places = np.flatnonzero(self._where[:, 0] == number)
        if not len(places):
            return  # its members have left
        (table, ahead), columns = self._tables[number], self._where[places, 1]
        rows = [table.row(max(0, index + ahead)) for index in range(first, first + ROWS)]
        for group, into in enumerate(self._series):
            for key in rows[-1][group]:
                base = table._groups[group][key]
                values = [row[group].get(key, base) for row in rows]
                parts = zip(*values, strict=True) if isinstance(base, tuple) else [values]
                if key not in into:
                    into[key] = self._untouched(group, key)
                for filled, part in zip(into[key], parts, strict=True):
                    for out, value in zip(filled, part, strict=True):
                        out[places] = value[columns] if isinstance(value, np.ndarray) else value

    def _untouched(self, group: int, key: str) -> list[Floats]:
        """Return the initial values of the optimizers, `[ROWS, K]` for each number under `key`."""
        held = np.array([schedule._groups[group][key] for schedule in self._members], dtype=np.float64)
        return [np.tile(column, (ROWS, 1)) for column in held.reshape(len(held), -1).T]

    def _stacked(self) -> list[StackedRow]:
        """Return the rows of `_series` as tensors, with the tensors of the previous row if nothing changes."""
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
        plateaus: the bound plateaus of the members.

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
        _check_one("scheduled values", [", ".join(plateau.row(0)[0]) for plateau in plateaus])
        self.monitor = plateaus[0].monitor
        self._members = list(plateaus)
        self._ahead = [0] * len(self._members)
        self._row: StackedRow = []
        self._current = False
        self._at = 0

    def row(self, index: int) -> StackedRow:
        """Return the current numbers of each parameter group, in epoch or iteration `index` of a warm-up.

        `[{"lr": float64 CPU [K]}, ...]`; a tensor is the object of the previous call if its values are equal.
        """
        own = list(zip(self._members, self._ahead, strict=True))
        at = min(index, max(plateau.warmed - ahead for plateau, ahead in own))
        if not self._current or at != self._at:
            self._at = at
            rows = [plateau.row(max(0, index + ahead)) for plateau, ahead in own]
            before = self._row or [{} for _ in rows[0]]
            self._row = [
                {key: _stacked([row[group][key] for row in rows], before[group].get(key)) for key in held}
                for group, held in enumerate(rows[0])
            ]
            self._current = True
        return self._row

    def place(self, ahead: Sequence[int]) -> None:
        """Give each member the row that is this number of rows ahead of the stack's `index`."""
        self._ahead = list(ahead)
        self._current = False

    def put(self, schedules: Mapping[int, Plateau], ahead: Mapping[int, int]) -> None:
        """Give lanes to other members.

        Args:
            schedules: the bound plateaus, by lane.
            ahead: for each lane, the number of rows by which each is ahead of the stack.

        Raises:
            Unfusable: they differ from the stack's in what they monitor, or in the number of parameter groups.
        """
        _check_one("metrics to monitor", [self.monitor, *(plateau.monitor for plateau in schedules.values())])
        groups = [len(self._members[0].row(0)), *(len(plateau.row(0)) for plateau in schedules.values())]
        _check_one("numbers of parameter groups", groups)
        for k, plateau in schedules.items():
            self._members[k], self._ahead[k] = plateau, ahead[k]
        self._current = False

    def observe(self, *values: float | None) -> None:
        """Update each member with the metric's next value; None for a member without one."""
        for plateau, value in zip(self._members, values, strict=True):
            if value is not None:
                plateau.observe(value)
        self._current = False

    def member(self, k: int) -> Plateau:
        """Return the current plateau of member k, for its state; the next row is read from it again."""
        self._current = False
        return self._members[k]

    def keep(self, index: Tensor) -> None:
        """Keep only the members at `index`, int64."""
        self._members = [self._members[k] for k in index.tolist()]
        self._ahead = [self._ahead[k] for k in index.tolist()]
        self._row = []
        self._current = False


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


def _check_one(what: str, values: Sequence[Any]) -> None:
    if len(set(values)) > 1:
        raise Unfusable(f"the members' schedules have different {what}: {', '.join(map(str, dict.fromkeys(values)))}")
