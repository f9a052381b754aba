"""Table on the device of the learning rates of captured steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

ROWS = 1024
"""Number of rows on the device at a time: as many as a schedule grows at a time."""

Rates: TypeAlias = list[float]
Foresight: TypeAlias = Callable[[], Sequence[Sequence[dict[str, Any]]]]
"""Function that returns the schedule's rows for the next step and those after it: per step, one dict per group."""


class RateTable:
    """Table of the rates of the next steps, and a counter that every step advances.

    No step transfers rates. The schedule is used only as long as it agrees with the parameter groups: `refresh`
    compares them with the row that the step will read. If they differ (after a resume, or if a rate was set manually),
    the table is rewritten: from the schedule if the values agree with it again, otherwise with the rates of the groups
    in every row.

    Args:
        dtypes: the dtypes of the rates, one per parameter group.
        device: the device of the table.
        foresight: called when the rows are used up or wrong.

    Attributes:
        rates: for each parameter group, a zero-dimensional tensor with the rate of the latest step.
    """

    def __init__(self, dtypes: Sequence[torch.dtype], device: torch.device, foresight: Foresight) -> None:
        self._foresight = foresight
        self._pinned = device.type == "cuda"
        kinds = list(dict.fromkeys(dtypes))
        self._tables = [torch.zeros(ROWS, len(dtypes), dtype=kind, device=device) for kind in kinds]
        self._rows = [torch.zeros(1, len(dtypes), dtype=kind, device=device) for kind in kinds]
        self._counter = torch.zeros(1, dtype=torch.int64, device=device)
        self.rates = [self._rows[kinds.index(kind)][0, index] for index, kind in enumerate(dtypes)]
        self._ahead: list[Rates] = []
        """Rates in the table."""
        self._at: int | None = None
        """Value of the counter; None if unknown."""
        self._next: int | None = None

    def refresh(self, rates: Rates) -> None:
        """Ensure that the next step reads `rates`."""
        at, self._at = self._at, None  # until the step is through
        if at is None or at == len(self._ahead) or self._ahead[at] != rates:
            at = self._write(rates, at)
        self._next = at

    def advance(self) -> None:
        """Read the row and advance the counter; this is the work of a step on the device."""
        for table, row in zip(self._tables, self._rows, strict=True):
            torch.index_select(table, 0, self._counter, out=row)
        self._counter.add_(1)

    def stepped(self) -> None:
        """Count the completed step, which advanced the counter."""
        self._at = None if self._next is None else self._next + 1

    def _write(self, rates: Rates, at: int | None) -> int:
        """Copy `rates` and the following rows to the device; return the position of the counter."""
        rows = self._foresight()[:ROWS]
        if rows and _rates(rows[0], rates) == rates:
            self._ahead = [_rates(row, rates) for row in rows]
            for table in self._tables:
                host = torch.tensor(self._ahead, dtype=table.dtype, pin_memory=self._pinned)
                table[: len(rows)].copy_(host, non_blocking=True)
            at = None
        else:
            for table in self._tables:
                for column, rate in zip(table.unbind(1), rates, strict=True):
                    column.fill_(rate)  # the number is an argument of the kernel: nothing waits
            at = at if at != ROWS else None
            self._ahead = [rates] * ROWS
        if at is None:
            self._counter.zero_()
        return at or 0


def _rates(row: Sequence[dict[str, Any]], present: Rates) -> Rates:
    """Return the rates of a row; a group whose rate is not scheduled keeps its current rate."""
    return [numbers.get("lr", rate) for numbers, rate in zip(row, present, strict=True)]
