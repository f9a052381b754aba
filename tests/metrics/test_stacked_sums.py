"""What the built-in metrics do with a stack at once is what `torch.vmap` makes of their `sums`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trainyard.metrics import (
    Accuracy,
    ConfusionMatrix,
    CrossEntropy,
    MeanAbsoluteError,
    MeanSquaredError,
    SumMetric,
)

BUILDS: dict[str, Callable[[], SumMetric]] = {
    "accuracy": Accuracy,
    "accuracy_ignoring": lambda: Accuracy(ignore_index=1),
    "topk": lambda: Accuracy([1, 3]),
    "cross_entropy": CrossEntropy,
    "confusion": ConfusionMatrix,
    "mse": MeanSquaredError,
    "mae": MeanAbsoluteError,
}


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(33,), (5, 4)])
def test_bit_for_bit(name: str, shared: bool, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    metric = BUILDS[name]()
    g = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, *shape, 6, generator=g).to(dtype)
    target = torch.randint(6, shape if shared else (3, *shape), generator=g)
    if metric.class_axis:
        outputs[torch.rand(outputs.shape, generator=g) < 0.1] = float("nan")
        target[torch.rand(target.shape, generator=g) < 0.2] = -100
    else:
        outputs = outputs[..., 0]
    got, want = metric.stacked_sums(outputs, target), SumMetric.stacked_sums(metric, outputs, target)
    assert got.keys() == want.keys()
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=0, atol=0, equal_nan=True)


class Halved(Accuracy):
    """Writes `sums` anew, and not `stacked_sums`."""

    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        found = super().sums(outputs, target)
        return {**found, "accuracy": found["accuracy"] / 2}


class Further(Halved):
    """Inherits both."""


@pytest.mark.parametrize("kind", [Halved, Further])
def test_sums_of_ones_own_are_not_passed_over(kind: type[Accuracy]) -> None:
    outputs, target = torch.eye(4).expand(2, 4, 4), torch.arange(4)
    metric = kind()
    metric.members = 2
    metric.process((0, target), outputs)
    assert metric.compute().tolist() == [0.5, 0.5]
