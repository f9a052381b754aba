"""Hyperparameters of a stacked optimizer on the device, where a captured step reads them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainyard.fused.optim.optimizer import StackedOptimizer


class StackedGraphHyperparameters:
    """A `trainyard.step.cuda_graph.graph_hyperparameters.GraphHyperparameters` of a stacked optimizer.

    The optimizer keeps all of them on the device. A row of a schedule holds the numbers of all members, and goes to the
    device as one tensor when it changes.
    """

    def __init__(self, optimizer: StackedOptimizer) -> None:
        self._optimizer = optimizer
        self._branched = False
        self._version = -1

    def refresh(self) -> None:
        self._branched |= self._optimizer.refresh()

    def take(self) -> None:
        self._branched = False
        self._version = self._optimizer.version

    def changed(self) -> str | None:
        if self._version != self._optimizer.version:
            return "the optimiser's state"
        return "whether a number of the optimiser is 0" if self._branched else None

    def advance(self) -> None:
        """Do nothing: the numbers are on the device before the step."""

    def stepped(self) -> None:
        """Do nothing: no step is counted."""

    def placed(self) -> AbstractContextManager[None]:
        return nullcontext()

    def release(self) -> None:
        """Do nothing: the numbers stay on the device."""
