"""Metrics of language models, functions of the mean cross-entropy per token."""

from __future__ import annotations

import math

from torch import Tensor

from trainyard.metrics.loss import CrossEntropy


class Perplexity(CrossEntropy):
    """`exp` of the mean cross-entropy per token (V for a uniform guess): logits `[B, T, V]`, tokens `[B, T]`."""

    def compute(self) -> Tensor:
        """Return the perplexity, at least 1, float64."""
        return super().compute().exp()


class BitsPerCharacter(CrossEntropy):
    """The mean cross-entropy in bits, where each token is a character: logits `[B, T, V]`, characters `[B, T]`."""

    def compute(self) -> Tensor:
        """Return the bits per character, at least 0, float64."""
        return super().compute() / math.log(2)
