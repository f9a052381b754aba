"""Operations of a step: on CUDA each is a kernel, so that one more is seen here and not in a benchmark."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operations import Operations, operations
from recorded_graph import RecordedGraph
from torch import nn

from trainyard.models import MLP
from trainyard.optim import build
from trainyard.step.clip import NoClip
from trainyard.step.cuda_graph.captured_step import CapturedStep
from trainyard.step.precision import Precision, ScaledAutocast, make_precision
from trainyard.step.stacked import StackedScaledAutocast
from trainyard.step.step import Step, make_step

CPU = torch.device("cpu")
BATCH = (torch.randn(4, 8), torch.randint(3, (4,)))
# Of an MLP of three layers: 3 products with a bias, 2 activations, the log-softmax and the loss; as many in the
# backward pass, with two products and a sum for each layer, but one product for the first.
FORWARD_AND_BACKWARD = 7 + 12
OPTIMIZER = 2
"""The fused Adam: the counts of its steps, and its kernel."""
LIMIT = 22
"""Operations of the whole step of one run, at most."""


def mlp_step(accumulate: int = 1, precision: str = "fp32") -> Step:
    torch.manual_seed(0)
    model = MLP(8, 3, hidden=[8, 8])
    optimizer = build(lambda params: torch.optim.Adam(params, fused=True), model.parameters())
    made = make_precision(precision, CPU)
    return make_step(model.train_step, optimizer, precision=made, clip=NoClip(), accumulate=accumulate)


def test_a_step_of_one_run() -> None:
    step = mlp_step()
    step(BATCH, 0, 1)
    counted = operations(step, BATCH)
    assert counted.numbers() == {"forward and backward": FORWARD_AND_BACKWARD, "optimizer": OPTIMIZER}, counted.phases
    assert sum(counted.numbers().values()) <= LIMIT


def test_a_group_of_batches() -> None:
    """The second batch adds to the gradients of the six parameters; a division of the loss is no operation."""
    step = mlp_step(accumulate=2)
    for position in range(2):
        step(BATCH, position, 2)
    first, second = (operations(step, BATCH, position, 2) for position in range(2))
    assert first.numbers() == {"forward and backward": FORWARD_AND_BACKWARD}, first.phases
    assert second.numbers() == {"forward and backward": FORWARD_AND_BACKWARD + 6, "optimizer": OPTIMIZER}, second.phases


def test_a_scaled_loss_is_one_operation_more() -> None:
    plain, scaled = mlp_step(precision="bf16"), mlp_step(precision="fp16")
    numbers = []
    for step in (plain, scaled):
        step(BATCH, 0, 1)
        numbers.append(operations(step, BATCH).numbers()["forward and backward"])
    assert numbers[1] == numbers[0] + 1


class CountingGraph(RecordedGraph):
    """Counts the work that is captured, as it runs before."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[Operations] = []

    def warm_up(self, function: Any) -> Any:
        self.counted.append(Operations())
        with self.counted[-1]:
            return super().warm_up(function)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.usefixtures("capturable_on_the_cpu")
def test_a_captured_step_computes_what_the_step_does(accumulate: int) -> None:
    torch.manual_seed(0)
    model = MLP(8, 3, hidden=[8, 8])
    optimizer = build(lambda params: torch.optim.Adam(params, fused=True), model.parameters())
    plain = make_step(model.train_step, optimizer, precision=Precision(), clip=NoClip(), accumulate=accumulate)
    graph = CountingGraph()
    step = CapturedStep(plain, graph, dict(model.named_modules()))
    for position in range(2 * accumulate):
        step(BATCH, position, 2 * accumulate)
    expected = [FORWARD_AND_BACKWARD + OPTIMIZER]
    if accumulate == 2:
        expected = [FORWARD_AND_BACKWARD, FORWARD_AND_BACKWARD + 6 + OPTIMIZER]
    counted = graph.counted[-accumulate:]
    assert [sum(each.numbers().values()) for each in counted] == expected, [each.phases for each in counted]


class Itself(nn.Module):
    """A model whose loss is a parameter: its gradient is what backward begins with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def train_step(self, batch: Any) -> Any:
        return {"loss": self.weight}


@pytest.mark.parametrize("precision", [Precision(), ScaledAutocast(CPU)], ids=["fp32", "fp16"])
def test_a_gradient_is_not_the_memory_that_backward_begins_with(precision: Precision) -> None:
    model = Itself()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    step = make_step(model.train_step, optimizer, precision=precision, clip=NoClip(), accumulate=2)
    for position in range(4):
        step(None, position, 4)
        if model.weight.grad is not None:
            model.weight.grad.mul_(3)  # the first half of each mean
    assert model.weight.item() == 1 - 2 * 0.25 * (3 * 0.5 + 0.5)


def test_members_begin_with_their_scales() -> None:
    precision = StackedScaledAutocast(CPU, 2)
    weight = nn.Parameter(torch.ones(2))
    precision.backward(weight * torch.tensor([1.0, 2.0]), size=4)
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.0**14, 2.0**15]
    weight.grad = None
    precision.backward(weight)
    weight.grad.zero_()  # type: ignore[attr-defined]
    assert precision.member_state_dict(0)["scale"] == 2.0**16
