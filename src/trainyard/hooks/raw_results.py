"""What the weights are worth by themselves, where an average of them is evaluated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from trainyard.metrics import Metric
from trainyard.runner import Runner, read


class RawResults:
    """Puts the batches of a validation through `runner.model` too, beside what is evaluated.

    It has metrics of its own; the results are recorded as `val_raw/<name>`.
    """

    def __init__(self) -> None:
        self._predict: Callable[[Any], Any] | None = None
        self._metrics: dict[str, Metric] = {}

    def begin(self, runner: Runner) -> None:
        """Before the first batch."""
        evaluated = runner.eval_model
        try:
            runner.eval_model = runner.model
            self._predict = runner.predict_step("val")
        finally:
            runner.eval_model = evaluated
        runner.model.eval()
        self._metrics = copy.deepcopy(runner.metrics)
        for metric in self._metrics.values():
            metric.reset()

    def process(self, batch: Any) -> None:
        """After each batch."""
        if self._predict is not None:
            outputs = self._predict(batch)
            for metric in self._metrics.values():
                metric.process(batch, outputs)

    def record(self, runner: Runner) -> None:
        """After the last batch: results that are one number a member go into the journal."""
        if self._predict is None:
            return
        self._predict = None
        results: dict[str, Tensor] = {}
        for name, metric in self._metrics.items():
            result = metric.compute()
            for key, value in (result if isinstance(result, Mapping) else {name: result}).items():
                if value.numel() == len(runner.members):
                    results[f"val_raw/{key}"] = value
        for solo, values in zip(runner.solos, read(results, len(runner.members)), strict=True):
            solo.members[0].record(values, step=solo.iter, epoch=solo.epoch)
