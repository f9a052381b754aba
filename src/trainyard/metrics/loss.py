"""Cross-entropy of the target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainyard.checks import integer
from trainyard.metrics.metric import SumMetric


class CrossEntropy(SumMetric):
    """The mean cross-entropy over samples (or tokens), in nats, summed in float64.

    Logits `[B, ..., C]`, target `[B, ...]`. Every sample has the same weight, regardless of batch sizes.

    Args:
        ignore_index: the target that is ignored (padding), as in `torch.nn.CrossEntropyLoss`.
        prefix: see `Metric`.
    """

    def __init__(self, ignore_index: int = -100, prefix: str | None = None) -> None:
        super().__init__(prefix)
        self.ignore_index = integer("ignore_index", ignore_index)

    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the summed negative log-likelihood (float64) and the number of targets."""
        nll = self._nll(outputs, target).sum(dtype=torch.float64)
        return {"nll": nll, "count": (target != self.ignore_index).count_nonzero()}

    def stacked_sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the same sums for each member, `[K]`."""
        target = target.expand(outputs.shape[:-1])
        nll = self._nll(outputs, target).view(target.shape).flatten(1).sum(1, dtype=torch.float64)
        return {"nll": nll, "count": (target != self.ignore_index).flatten(1).count_nonzero(1)}

    def _nll(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Compute the negative log-likelihood of each target, in one axis; 0 for ignored ones."""
        logits = outputs.flatten(0, -2)
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        return F.cross_entropy(logits, target.flatten(), ignore_index=self.ignore_index, reduction="none")

    def compute(self) -> Tensor:
        """Return the nats per sample, float64."""
        return self.total("nll") / self.total("count")
