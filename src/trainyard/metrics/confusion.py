"""Which classes are taken for which."""

from __future__ import annotations

import torch
from torch import Tensor

from trainyard.metrics.metric import SumMetric


class ConfusionMatrix(SumMetric):
    """Counts `[C, C]`: rows are the true class, columns the predicted one, the class with the highest output.

    Outputs `[B, ..., C]` say how many classes there are; a target outside of them (padding) counts for nothing.
    """

    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The counts of a batch, int64."""
        classes = torch.arange(outputs.shape[-1], device=outputs.device)
        true = (target.reshape(-1, 1) == classes).float()
        predicted = (outputs.argmax(-1).reshape(-1, 1) == classes).float()
        # A product of indicators needs neither a scatter (not deterministic on CUDA) nor a bincount (waits for the
        # device); float32 counts exactly up to 2^24 targets a batch.
        return {"matrix": (true.T @ predicted).long()}

    def compute(self) -> Tensor:
        """`[C, C]`, or `[K, C, C]` for K members, int64."""
        return self.total("matrix")
