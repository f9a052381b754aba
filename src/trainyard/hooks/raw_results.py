"""What the weights are worth by themselves, where an average of them is evaluated."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor

from trainyard.metrics import Metric, results_of
from trainyard.runner import Runner, read


class RawResults:
    """Puts the batches of a validation through `runner.model` too, beside what is evaluated.

    It has metrics of its own; the results are recorded as `val_raw/<name>`, of a set `val/easy` as
    `val_raw/easy/<name>`.
    """

    def __init__(self) -> None:
        self._predict: Callable[[Any], Any] | None = None
        self._metrics: dict[str, dict[str, Metric]] = {}

    def begin(self, runner: Runner) -> None:
        """Before the first batch."""
        evaluated = runner.eval_model
        try:
            runner.eval_model = runner.model
            self._predict = runner.predict_step("val")
        finally:
            runner.eval_model = evaluated
        runner.model.eval()
        self._metrics = {split: copy.deepcopy(runner.metrics) for split in runner.sets("val")}
        for metrics in self._metrics.values():
            for metric in metrics.values():
                metric.reset()

    def process(self, batch: Any, split: str) -> None:
        """After each batch of this set."""
        if self._predict is not None:
            outputs = self._predict(batch)
            for metric in self._metrics[split].values():
                metric.process(batch, outputs)

    def idle(self, batch: Any) -> None:
        """In place of `process`, for a batch that does not count."""
        if self._predict is not None:
            self._predict(batch)

    def record(self, runner: Runner) -> None:
        """After the last batch: results that are one number a member go into the journal."""
        if self._predict is None:
            return
        self._predict = None
        results: dict[str, Tensor] = {}
        for split, metrics in self._metrics.items():
            for name, value in results_of(metrics).items():
                if value.numel() == len(runner.members):
                    results[f"{raw(split)}/{name}"] = value
        for member, values in zip(runner.members, read(results, len(runner.members)), strict=True):
            member.record(values, step=member.iter, epoch=member.epoch)


def raw(name: str) -> str:
    """The name of a set, or of a result, for the weights by themselves."""
    return name.replace("val", "val_raw", 1)
