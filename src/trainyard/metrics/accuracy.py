"""How often the right class is among the first k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainyard.errors import ConfigError
from trainyard.metrics.metric import Result, SumMetric


class Accuracy(SumMetric):
    """The share of samples (or tokens) whose class is among the `k` with the highest outputs.

    Outputs `[B, ..., C]` (logits or probabilities), target `[B, ...]`. Of equal outputs the class of the lower index
    comes first, as in `argmax`. Where `k` exceeds the number of classes, every sample counts as right. An output that
    is NaN outranks every number, and a NaN for the right class is wrong, so a model that diverged does not shine.

    Args:
        topk: a number: `compute` gives one value. A list: it gives `{"accuracy": ..., "top5": ...}`, where `accuracy`
            stands for k = 1.
        ignore_index: the target that counts for nothing (padding), as in `torch.nn.CrossEntropyLoss`.
        prefix: see `Metric`.
    """

    def __init__(self, topk: int | Sequence[int] = 1, ignore_index: int = -100, prefix: str | None = None) -> None:
        super().__init__(prefix)
        ks = [topk] if isinstance(topk, int) else list(topk) if isinstance(topk, (list, tuple)) else []
        if not ks or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in ks):
            raise ConfigError("topk", topk, "a whole number of at least 1, or a list of them")
        self.single = isinstance(topk, int)
        self.ignore_index = ignore_index
        self.names = {"accuracy" if k == 1 else f"top{k}": k for k in ks}

    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Samples that are right at each k, and samples, as int64."""
        counts = target != self.ignore_index
        index = target.clamp(min=0).unsqueeze(-1)
        right = outputs.gather(-1, index)
        classes = torch.arange(outputs.shape[-1], device=outputs.device)
        before = ~(outputs <= right) | ((outputs == right) & (classes < index))
        rank = before.sum(-1)
        sums = {name: ((rank < k) & counts).sum() for name, k in self.names.items()}
        return {**sums, "count": counts.sum()}

    def compute(self) -> Result:
        """In [0, 1], float64."""
        shares = {name: self.total(name).double() / self.total("count") for name in self.names}
        return next(iter(shares.values())) if self.single else shares
