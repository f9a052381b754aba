"""A hook that interrupts a run."""

from __future__ import annotations

from typing import Any

from trainyard.hooks import Hook
from trainyard.runner import Runner


class InterruptAt(Hook):
    """Interrupts the run after an iteration, as Ctrl-C does."""

    stackable = True

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.iteration:
            runner.interrupt()
