"""Confusion matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from trainyard.metrics.metric import SumMetric


class ConfusionMatrix(SumMetric):
    """Counts `[C, C]`: rows are true classes, columns are predicted classes (the highest output).

    The shape of the outputs, `[B, ..., C]`, defines the number of classes; a target that is not a class (padding) is
    ignored.
    """

    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Count the classes of a batch, int64 `[C, C]`."""
        return {"matrix": _counts(outputs.argmax(-1).flatten(), target.flatten(), outputs.shape[-1])}

    def stacked_sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the same counts for each member, `[K, C, C]`."""
        predicted = outputs.argmax(-1)
        true = target.expand(predicted.shape).flatten(1)
        return {"matrix": _counts(predicted.flatten(1), true, outputs.shape[-1])}

    def compute(self) -> Tensor:
        """Return the counts `[C, C]`, or `[K, C, C]` for K members, int64."""
        return self.total("matrix")


def _counts(predicted: Tensor, true: Tensor, size: int) -> Tensor:
    """Count pairs of classes: `[N]` and `[N]` to `[C, C]`, or `[K, N]` and `[K, N]` to `[K, C, C]`.

    A product of indicators needs neither a scatter (not deterministic on CUDA) nor a bincount (waits for the device);
    float32 counts exactly up to 2^24 targets a batch.
    """
    classes = torch.arange(size, device=true.device)
    rows, columns = ((index.unsqueeze(-1) == classes).float() for index in (true, predicted))
    return (rows.mT @ columns).long()
