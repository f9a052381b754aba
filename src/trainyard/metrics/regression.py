"""Regression metrics: mean squared and mean absolute error."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from trainyard.metrics.metric import SumMetric


class _MeanError(SumMetric):
    class_axis = False

    @abstractmethod
    def error(self, difference: Tensor) -> Tensor:
        """Return the error of each number."""

    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the summed error (float64) and the number of numbers."""
        error = self.error(outputs.double() - target).sum()
        return {"error": error, "count": torch.full_like(error, outputs.numel(), dtype=torch.int64)}

    def stacked_sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the same for each member, `[K]`."""
        error = self.error(outputs.double() - target).flatten(1).sum(1)
        return {"error": error, "count": torch.full_like(error, outputs[0].numel(), dtype=torch.int64)}

    def compute(self) -> Tensor:
        """Return the mean error, at least 0, float64."""
        return self.total("error") / self.total("count")


class MeanSquaredError(_MeanError):
    """The mean of `(output - target)^2` over all elements; outputs and target have the same shape, such as `[B]`."""

    def error(self, difference: Tensor) -> Tensor:
        """Return the square of `difference`."""
        return difference.square()


class MeanAbsoluteError(_MeanError):
    """The mean of `|output - target|` over all elements; outputs and target have the same shape, such as `[B]`."""

    def error(self, difference: Tensor) -> Tensor:
        """Return the absolute value of `difference`."""
        return difference.abs()
