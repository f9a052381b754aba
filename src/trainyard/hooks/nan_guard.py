"""Stop a training whose loss is no longer a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainyard.errors import ConfigError
from trainyard.hooks.hook import Hook
from trainyard.runner import Runner, read


class NaNGuard(Hook):
    """Ends a member as failed once its loss is NaN or infinite.

    Before each checkpoint it looks at the weights too, since a finite loss may have had gradients that were not: no
    checkpoint holds a weight that is not a number.

    Args:
        interval: iterations between two looks at the loss; each waits for the device.
    """

    priority = "HIGH"
    stackable = True

    def __init__(self, interval: int = 10) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ConfigError("interval", interval, "a whole number of at least 1")
        self.interval = interval
        self._loss: Tensor | None = None

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: dict[str, Tensor]) -> None:
        self._loss = outputs["loss"]
        if runner.iter % self.interval == 0:
            self._look(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        self._look(runner)

    def after_train(self, runner: Runner) -> None:
        self._look(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._look(runner.whole)
        (member,) = runner.members
        finite = [parameter.isfinite().all() for parameter in runner.model.parameters()]
        if not member.failed and finite and not torch.stack(finite).all():
            member.stop(f"a weight is no finite number after iteration {runner.iter}", failed=True)

    def _look(self, runner: Runner) -> None:
        if self._loss is None:
            return
        for member, values in zip(runner.members, read({"loss": self._loss}, len(runner.members)), strict=True):
            if not math.isfinite(values["loss"]) and not member.failed:
                member.stop(f"the loss is {values['loss']} at iteration {runner.iter}", failed=True)

    def keep(self, members: Sequence[int]) -> None:
        if self._loss is not None:
            self._loss = self._loss[list(members)]
