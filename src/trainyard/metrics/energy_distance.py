"""Energy distance between generated samples and those of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainyard.metrics.metric import Metric


class EnergyDistance(Metric):
    """The energy distance between generated and real points; 0 if their distributions are equal.

    2 E|X - Y| - E|X - X'| - E|Y - Y'|, without the pairs of a point with itself, over the points of each batch and
    averaged over samples. The estimate is unbiased and can therefore be slightly below 0. A batch is `(x, y)`, with `x`
    and the outputs `[B, ...]`; only pairs of the same class in `y`, `[B]`, are compared, so that the classes must match
    too.

    Source: Székely and Rizzo, Energy statistics: A class of statistics based on distances, 2013.
    """

    capturable = True

    def process(self, batch: Any, outputs: Tensor) -> None:
        x, y = batch
        real, made = x.flatten(1).double(), outputs.flatten(1).double()
        same = (y[:, None] == y[None]).double()
        others = same - torch.eye(len(y), dtype=same.dtype, device=same.device)

        def mean(one: Tensor, other: Tensor, weights: Tensor) -> Tensor:
            return (torch.cdist(one, other) * weights).sum() / weights.sum().clamp_min(1)

        distance = 2 * mean(made, real, same) - mean(made, made, others) - mean(real, real, others)
        self.add({"distance": distance * len(y), "count": y.new_full((), len(y), dtype=torch.int64)})

    def compute(self) -> Tensor:
        """Return the distance, float64."""
        return self.state["distance"] / self.state["count"]
