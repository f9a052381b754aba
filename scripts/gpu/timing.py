"""Timing: the sides of a table are measured alternately, in windows of seconds, and their losses are compared.

A side is one way to do the work of a table. In a window, a side trains the compared steps, a warm-up, and the timed
seconds. The device has finished its work at the start and at the end of the timed seconds. Because all sides of a table
do the same work, their losses after the compared steps must be equal up to rounding.
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
"""Seconds for the preparation of a side before its window: building the model, capture, compilation."""


@dataclass(frozen=True)
class Plan:
    """Sizes of a comparison.

    Attributes:
        seconds: the timed seconds of a window.
        warm: the minimum number of seconds of the warm-up.
        rounds: the number of windows of each side.
        compared: the number of steps after which the losses are compared.
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
        """Count a step, and return whether the window is over.

        Args:
            loss: the loss of the step: a number, or one for each member, of which the first is compared.
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
        """Set the results of a side that was timed in other processes in the same way."""
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
        members: the number of models that one step trains; the time is divided by this number.
    """

    train: Callable[[Window], None]
    members: int = 1


@dataclass(frozen=True)
class Missing:
    """A side that cannot run on this machine."""

    reason: str


def going_on(make: Callable[[], Iterator[Any]], members: int = 1) -> Side:
    """Return a side that continues its training in each window; `make` yields the loss of each step, without end."""
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
    """Time the sides of these tables alternately, round by round, and write each window to the results.

    If the time of the part is not sufficient for all rounds, the last windows are omitted.

    A row of the results has `values` (microseconds per step, one for each window), their `median`, `loss`, `same`
    (whether the loss equals that of the first side of the table with a loss) and `clocks` (MHz, after each window).

    Args:
        part: the part.
        tables: the sides by name, for each table by key.
        plan: the sizes.
        tolerances: the relative tolerance of the losses of each table.
        reserve: the seconds of the part that are reserved for later work.
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
    """Return the row of a side after one more window; the loss is that of the first window."""
    row = before or {"values": [], "median": None, "loss": window.loss, "same": None, "clocks": []}
    values = [*row["values"], window.microseconds / side.members]
    return row | {"values": values, "median": statistics.median(values), "clocks": [*row["clocks"], clock]}


def synchronizer(part: Part) -> Callable[[], None]:
    """Return the function that waits until the device has done its work."""
    return (lambda: torch.cuda.synchronize(part.device)) if part.cuda else (lambda: None)


def clock_of(part: Part) -> Callable[[], int | None]:
    """Return a function that reads the device's clock in MHz; the function returns None if the clock is unknown."""
    if not part.cuda:
        return lambda: None
    try:
        return Gpu(str(torch.cuda.get_device_properties(part.device).uuid)).clock
    except OSError:  # NVML is not there
        return lambda: None
