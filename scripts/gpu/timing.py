"""Timing: sides that take turns in windows of seconds, whose losses are compared.

A side trains step by step in a window: steps that are compared, a warm-up, and the seconds that are timed. The device
has finished its work at the beginning and at the end of these seconds. The loss after the compared steps must be the
same for all sides of a table, up to rounding: they do the same work.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from part import Part, in_one_line
from torch import Tensor

from trainyard.nvml import Gpu

SPARE = 2.0
"""Seconds for what a side does before its window: it builds its model, captures, compiles."""


@dataclass(frozen=True)
class Plan:
    """Sizes of a comparison.

    Attributes:
        seconds: of a window.
        warm: seconds before it.
        rounds: windows of each side.
        compared: steps after which the losses are compared.
    """

    seconds: float
    warm: float
    rounds: int
    compared: int = 100


class Window:
    """Counts and times the steps of a side.

    Args:
        plan: the sizes.
        synchronize: waits until the device has done its work.
    """

    def __init__(self, plan: Plan, synchronize: Callable[[], None]) -> None:
        self._plan = plan
        self._synchronize = synchronize
        self._steps = self._first = 0
        self._began: float | None = None
        self._made: float | None = None
        self._loss: Any = None
        self.microseconds = 0.0

    def step(self, loss: Any) -> bool:
        """Note a step that was made, and return whether the window is over.

        Args:
            loss: of the step; of the first member, where there are several.
        """
        self._steps += 1
        now = perf_counter()
        if self._made is None:
            self._made = now
        if self._steps == self._plan.compared:
            self._loss = loss.detach().clone() if isinstance(loss, Tensor) else loss
        if self._began is None:
            if self._steps >= self._plan.compared and now - self._made >= self._plan.warm:
                self._finish(loss)
                self._began, self._first = perf_counter(), self._steps
            return False
        if now - self._began < self._plan.seconds:
            return False
        self._finish(loss)
        self.microseconds = (perf_counter() - self._began) / (self._steps - self._first) * 1e6
        return True

    def _finish(self, loss: Any) -> None:
        if hasattr(loss, "block_until_ready"):  # JAX may not have launched it yet
            loss.block_until_ready()
        self._synchronize()

    def told(self, microseconds: float, loss: float) -> None:
        """Take the figures of a side that has timed itself in the same way."""
        self.microseconds, self._loss = microseconds, loss

    @property
    def loss(self) -> float:
        """The loss after the compared steps."""
        return float(self._loss.reshape(-1)[0]) if hasattr(self._loss, "reshape") else float(self._loss)


@dataclass(frozen=True)
class Side:
    """One way to do the work.

    Attributes:
        train: trains until the window is over.
        members: how many models one step of it trains; the time is a member's.
    """

    train: Callable[[Window], None]
    members: int = 1


@dataclass(frozen=True)
class Missing:
    """A side that there cannot be here."""

    reason: str


def going_on(make: Callable[[], Iterator[Any]], members: int = 1) -> Side:
    """Return a side that trains on from window to window; `make` yields the loss of each step, without end."""
    kept: list[Iterator[Any]] = []

    def train(window: Window) -> None:
        if not kept:
            kept.append(make())
        for loss in kept[0]:
            if window.step(loss):
                return

    return Side(train, members)


def take_turns(
    part: Part,
    tables: Mapping[str, Mapping[str, Side | Missing]],
    plan: Plan,
    tolerances: Mapping[str, float],
    *,
    reserve: float = 0.0,
) -> None:
    """Time the sides of these tables, one after the other, round by round, and write each window into the results.

    Where the part's time does not suffice for all rounds, the last windows are left out.

    A row of the results has `values` (microseconds a step, one a window), their `median`, `loss`, `same` (whether the
    loss is that of the table's first side that has one) and `clocks` (MHz, after each window).

    Args:
        part: the part.
        tables: the sides of each table, by its key and their names.
        plan: the sizes.
        tolerances: of the losses of each table, relative.
        reserve: seconds of the part's time that are for what follows.
    """
    clock, synchronize = clock_of(part), synchronizer(part)
    written = part.results.read().get("parts", {}).get(part.name, {}).get("tables", {})
    rows = {table: {name: row for name, row in written.get(table, {}).items() if "loss" in row} for table in tables}
    able = [(table, name, side) for table, sides in tables.items() for name, side in sides.items()]
    for table, name, side in able:
        if isinstance(side, Missing):
            part.put(table, name, missing=side.reason)
    for _ in range(plan.rounds):
        for turn in list(able):
            table, name, side = turn
            if isinstance(side, Missing):
                continue
            if part.left < reserve + plan.seconds + plan.warm + SPARE:
                if name not in rows[table]:
                    part.fail(f"{table}: {name}: no time is left")
                continue
            window = Window(plan, synchronize)
            try:
                side.train(window)
                row = _row(rows[table].get(name), window, side, clock())
            except Exception as error:  # the other sides go on
                able.remove(turn)
                part.put(table, name, **rows[table].get(name, {}), failed=in_one_line(error))
                part.fail(f"{table}: {name}: {in_one_line(error)}")
                continue
            if name not in rows[table]:
                reference = next(iter(rows[table].values()), row)["loss"]
                row["same"] = math.isclose(row["loss"], reference, rel_tol=tolerances[table])
                if not row["same"]:
                    part.fail(f"{table}: {name}: the loss is {row['loss']:.6g}, not {reference:.6g}")
            rows[table][name] = row
            part.put(table, name, **row)
            print(f"{table}: {name}: {row['values'][-1]:.2f} us, loss {row['loss']:.6g}", flush=True)


def _row(before: dict[str, Any] | None, window: Window, side: Side, clock: int | None) -> dict[str, Any]:
    """Return the row of a side after one more window; the loss is the first one's, since some sides train on."""
    row = before or {"values": [], "median": None, "loss": window.loss, "same": None, "clocks": []}
    values = [*row["values"], window.microseconds / side.members]
    return row | {"values": values, "median": statistics.median(values), "clocks": [*row["clocks"], clock]}


def synchronizer(part: Part) -> Callable[[], None]:
    """Return the function that waits until the device has done its work."""
    return (lambda: torch.cuda.synchronize(part.device)) if part.cuda else (lambda: None)


def clock_of(part: Part) -> Callable[[], int | None]:
    """Return a function that reads the device's clock in MHz; None without a device, or where it is not told."""
    if not part.cuda:
        return lambda: None
    try:
        return Gpu(str(torch.cuda.get_device_properties(part.device).uuid)).clock
    except OSError:  # NVML is not there
        return lambda: None
