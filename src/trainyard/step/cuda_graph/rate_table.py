"""Table on the device of the learning rates that captured steps take."""

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
    """Table of the rates of the steps ahead, and a counter that every step advances: a step transfers no rate.

    The schedule is only used as long as the parameter groups agree: `refresh` compares them with the row that the
    step will read. If they differ (a resume, a rate set by hand), the table is written again, from the schedule if the
    values agree with it again; else with the groups' own rates in every row.

    Args:
        dtypes: of the rates, one a parameter group.
        device: where the table is.
        foresight: asked when the rows are used up, or wrong.

    Attributes:
        rates: of each parameter group, a tensor of no dimension: the rate of the latest step.
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
        """Make sure that the row that the next step reads is `rates`."""
        at, self._at = self._at, None  # until the step is through
        if at is None or at == len(self._ahead) or self._ahead[at] != rates:
            at = self._write(rates, at)
        self._next = at

    def advance(self) -> None:
        """Take the row and advance the counter; this is the work of a step on the device."""
        for table, row in zip(self._tables, self._rows, strict=True):
            torch.index_select(table, 0, self._counter, out=row)
        self._counter.add_(1)

    def stepped(self) -> None:
        """Count the completed step, which advanced the counter."""
        self._at = None if self._next is None else self._next + 1

    def _write(self, rates: Rates, at: int | None) -> int:
        """Copy `rates` and what follows them to the device; return the counter's position."""
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
    """Return the rates of a row; a group whose rate the schedule leaves alone keeps the present one."""
    return [numbers.get("lr", rate) for numbers, rate in zip(row, present, strict=True)]
