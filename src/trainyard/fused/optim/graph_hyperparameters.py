"""Hyperparameters of a stacked optimizer on the device, from which a captured step reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainyard.fused.optim.stacked_hyperparameters import rows

if TYPE_CHECKING:
    from trainyard.fused.optim.optimizer import StackedOptimizer

ROWS = 64
"""Number of rows on the device at a time: as many as a stacked schedule makes at a time."""

Foresight = Callable[[], Sequence[Sequence[Mapping[str, Any]]]]


class StackedGraphHyperparameters:
    """A `trainyard.step.cuda_graph.graph_hyperparameters.GraphHyperparameters` of a stacked optimizer.

    The optimizer keeps all of them on the device, as float64 `[names, K]` for each parameter group. With a schedule
    that has one row per iteration, the rows of the next steps are also on the device: a table `[ROWS, names, K]`, of
    which each step uses its row. Otherwise, a changed row is sent before its step, as one tensor.

    The tensors of the groups have priority: before a step, they are compared, as objects, with those of the row that
    the step will use. If they differ (after a resume, or if a number was set manually), the table is rewritten.

    Args:
        optimizer: a stacked optimizer.
        foresight: a function of a schedule that returns the rows of the next steps.
    """

    def __init__(self, optimizer: StackedOptimizer, foresight: Foresight | None = None) -> None:
        self._optimizer = optimizer
        self._foresight = foresight
        self._branched = False
        self._version = -1
        self._ahead: list[list[dict[str, Tensor]]] = []
        """Numbers in the table: per step and parameter group, the tensor of each name."""
        self._at: int | None = None
        """Value of the counter; None if unknown."""
        self._next: int | None = None
        if foresight is not None:
            numbers = optimizer.numbers
            self._tables = [each.table.new_zeros(ROWS, *each.table.shape) for each in numbers]
            self._counter = torch.zeros(1, dtype=torch.int64, device=numbers[0].table.device)

    def refresh(self) -> None:
        if self._foresight is None:
            self._branched |= self._optimizer.refresh()
            return
        self._branched |= self._optimizer.refresh(copy=False)
        at, self._at = self._at, None  # until the step is through
        if at is None or at == len(self._ahead) or not self._is_next(at):
            self._write()
            at = 0
        self._next = at

    def take(self) -> None:
        self._branched = False
        self._version = self._optimizer.version

    def changed(self) -> str | None:
        if self._version != self._optimizer.version:
            return "the optimizer's state"
        return "whether weight_decay, momentum or dampening is 0" if self._branched else None

    def advance(self) -> None:
        """Take the row of this step from the table and advance the counter."""
        if self._foresight is None:
            return
        for table, numbers in zip(self._tables, self._optimizer.numbers, strict=True):
            torch.index_select(table, 0, self._counter, out=numbers.table.unsqueeze(0))
        self._counter.add_(1)
        self._optimizer.derive()

    def stepped(self) -> None:
        self._at = None if self._next is None else self._next + 1

    def placed(self) -> AbstractContextManager[None]:
        return nullcontext()

    def release(self) -> None:
        """Copy the current numbers to the device, replacing those of the latest step in the table."""
        if self._foresight is not None:
            for numbers in self._optimizer.numbers:
                numbers.copy_all()
            self._optimizer.derive()

    def _is_next(self, at: int) -> bool:
        return all(
            value is expected[name]
            for numbers, expected in zip(self._optimizer.numbers, self._ahead[at], strict=True)
            for name, value in numbers.host.items()
        )

    def _write(self) -> None:
        """Copy the rows of the next steps to the device, and set the counter to the first one."""
        assert self._foresight is not None
        present = [dict(numbers.host) for numbers in self._optimizer.numbers]
        steps = self._foresight()[:ROWS]
        ahead = [self._overlaid(present, step) for step in steps]
        self._ahead = ahead
        if not ahead or not self._is_next(0):
            ahead, self._ahead = [present], [present] * ROWS
        for index, table in enumerate(self._tables):
            host = torch.stack([torch.stack(list(step[index].values())) for step in ahead])
            host = host.pin_memory() if table.is_cuda else host
            table[: len(self._ahead)].copy_(host, non_blocking=True)  # one row is repeated
        self._counter.zero_()

    def _overlaid(
        self, present: Sequence[dict[str, Tensor]], step: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Tensor]]:
        keys = [numbers.keys for numbers in self._optimizer.numbers]
        return [
            held | dict(rows(row, [key for key in known if key in row]))
            for held, row, known in zip(present, step, keys, strict=True)
        ]
