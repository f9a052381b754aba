"""Numbers `[B]` and `[B, 1]` are the same numbers, in the loss and in metrics, alone and stacked."""

from typing import Any

import pytest
import torch
from torch import nn

from trainyard.batch import aligned
from trainyard.metrics import MeanSquaredError, as_metric
from trainyard.models import Supervised

torchmetrics: Any = pytest.importorskip("torchmetrics")
OUTPUT, TARGET = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 1.0])
SHAPES = [((3, 1), (3,)), ((3,), (3, 1)), ((3, 1), (3, 1)), ((3,), (3,)), ((1, 1), (1,)), ((1,), (1, 1))]


@pytest.mark.parametrize(("output", "target"), SHAPES)
@pytest.mark.parametrize("make", [MeanSquaredError, lambda: as_metric(torchmetrics.MeanSquaredError())])
def test_metrics_compare_numbers(make: Any, output: Any, target: Any) -> None:
    n = output[0]
    metric = make()
    metric.process((None, TARGET[:n].view(target)), OUTPUT[:n].view(output))
    assert metric.compute().item() == pytest.approx((OUTPUT[:n] - TARGET[:n]).square().mean().item())


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(("output", "target"), SHAPES)
def test_members_are_compared_with_theirs(members: int, own: bool, output: Any, target: Any) -> None:
    n = output[0]
    outputs = torch.stack([OUTPUT[:n].view(output) + k for k in range(members)])
    shared = TARGET[:n].view(target)
    metric = MeanSquaredError()
    metric.members = members
    metric.process((None, torch.stack([shared] * members) if own else shared), outputs)
    expected = [(OUTPUT[:n] + k - TARGET[:n]).square().mean().item() for k in range(members)]
    assert metric.compute().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("output", "target"), SHAPES)
def test_the_loss_compares_numbers(output: Any, target: Any) -> None:
    n = output[0]
    model = Supervised(nn.Identity(), nn.MSELoss())
    losses = model(OUTPUT[:n].view(output), TARGET[:n].view(target), mode="loss")
    assert losses["loss"].item() == pytest.approx((OUTPUT[:n] - TARGET[:n]).square().mean().item())


def test_classes_and_shares_stay_as_they_are() -> None:
    classes = torch.tensor([0, 0, 0])
    assert aligned(classes, OUTPUT.view(3, 1)) is classes
    shares = torch.ones(3, 2)
    assert aligned(shares, torch.ones(3, 2)) is shares
