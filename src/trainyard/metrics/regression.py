"""Errors of predicted numbers."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from trainyard.metrics.metric import SumMetric


class _MeanError(SumMetric):
    class_axis = False

    @abstractmethod
    def error(self, difference: Tensor) -> Tensor:
        """The error of each number."""

    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The summed error (float64) and the number of numbers."""
        error = self.error(outputs.double() - target).sum()
        return {"error": error, "count": torch.full_like(error, outputs.numel(), dtype=torch.int64)}

    def stacked_sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The same for each member."""
        error = self.error(outputs.double() - target).flatten(1).sum(1)
        return {"error": error, "count": torch.full_like(error, outputs[0].numel(), dtype=torch.int64)}

    def compute(self) -> Tensor:
        """At least 0, float64."""
        return self.total("error") / self.total("count")


class MeanSquaredError(_MeanError):
    """The mean of `(output - target)^2` over all numbers; outputs and target have the same shape, e.g. `[B]`."""

    def error(self, difference: Tensor) -> Tensor:
        """Squared."""
        return difference.square()


class MeanAbsoluteError(_MeanError):
    """The mean of `|output - target|` over all numbers; outputs and target have the same shape, e.g. `[B]`."""

    def error(self, difference: Tensor) -> Tensor:
        """Absolute."""
        return difference.abs()
