"""Accuracy, top-1 and top-k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainyard.checks import integer, integers
from trainyard.metrics.metric import Result, SumMetric


class Accuracy(SumMetric):
    """The fraction of samples (or tokens) whose class is among the `k` with the highest outputs.

    Outputs `[B, ..., C]` (logits or probabilities), target `[B, ...]`. Among equal outputs, the class with the lower
    index comes first, as in `argmax`. If `k` is at least the number of classes, every sample is correct. NaN ranks
    above every number, and a NaN for the true class counts as wrong. A diverged model therefore has a low accuracy. A
    target that is neither a class nor `ignore_index` is never correct.

    Args:
        topk: with a number, `compute` returns one value. With a list, it returns `{"accuracy": ..., "top5": ...}`,
            where `accuracy` is for k = 1.
        ignore_index: the target that is ignored (padding), as in `torch.nn.CrossEntropyLoss`.
        prefix: see `Metric`.
    """

    def __init__(self, topk: int | Sequence[int] = 1, ignore_index: int = -100, prefix: str | None = None) -> None:
        super().__init__(prefix)
        self.single = not isinstance(topk, (list, tuple))
        if self.single:
            ks = [integer("topk", topk, at_least=1, other="a list of such integers")]
        else:
            ks = integers("topk", topk, at_least=1, length=1)
        self.ignore_index = integer("ignore_index", ignore_index)
        self.names = {"accuracy" if k == 1 else f"top{k}": k for k in ks}
        self.largest = max(ks)

    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the number of correct samples for each k, and the number of all samples, as int64."""
        return self._sums(outputs, target, None)

    def stacked_sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the same numbers for each member, `[K]`."""
        return self._sums(outputs, target.expand(outputs.shape[:-1]), tuple(range(1, outputs.ndim - 1)))

    def _sums(self, outputs: Tensor, target: Tensor, axes: tuple[int, ...] | None) -> dict[str, Tensor]:
        """Sum the counts over these axes of the target; None for all."""
        counts = target != self.ignore_index
        hits = self._first(outputs, target) if self.largest == 1 else self._ranked(outputs, target)
        if self.ignore_index >= 0:  # else it is no class, which is never right
            hits = [hit & counts for hit in hits]
        # Counting is faster than summing for booleans.
        sums = {name: hit.count_nonzero(axes) for name, hit in zip(self.names, hits, strict=True)}
        return {**sums, "count": counts.count_nonzero(axes)}

    def _first(self, outputs: Tensor, target: Tensor) -> list[Tensor]:
        """Return which samples are right at k = 1, if no other k is needed."""
        highest, first = outputs.max(-1)
        return [(first == target) & (highest == highest)]  # NaN is not equal to itself

    def _ranked(self, outputs: Tensor, target: Tensor) -> list[Tensor]:
        """Return which samples are right at each k, by the number of classes ranked at or below the right one."""
        size = outputs.shape[-1]
        index = target.clamp(0, size - 1)
        is_class, index = index == target, index.unsqueeze(-1)
        right = outputs.gather(-1, index)
        classes = torch.arange(size, device=outputs.device)
        after = ((outputs < right) | ((outputs == right) & (classes >= index))).sum(-1)
        return [(after > size - k) & is_class for k in self.names.values()]

    def compute(self) -> Result:
        """Return the fraction or fractions in [0, 1], float64."""
        shares = {name: self.total(name).double() / self.total("count") for name in self.names}
        return next(iter(shares.values())) if self.single else shares
