"""Operations of a step of a stack: on CUDA each is a kernel, of which a stack of any width has as many."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from operations import operations

from trainyard.fused.model import StackedModel
from trainyard.fused.optim import bucket, stack_optimizers
from trainyard.fused.optim.kernel import KernelOptimizer
from trainyard.models import MLP
from trainyard.optim import build
from trainyard.step.clip import NoClip
from trainyard.step.precision import Precision, make_precision
from trainyard.step.stacked import StackedClipGradNorm, StackedClipGradValue
from trainyard.step.step import Step, make_step

# Of an MLP of three layers: 3 products with a bias, 2 activations and 6 for the loss; in the backward pass 3 for the
# loss, and two products and a sum for each layer, but one product for the first.
FORWARD_AND_BACKWARD = 11 + 13
OPTIMIZER = 19
"""Adam without a kernel of its own: 12 for the columns of its step, and 7 on lists of tensors."""
NORM = 6 + 2 + 3 + 1
"""The norm of each parameter's gradient, their norm, each member's factor, and the product."""
VALUE = 6 + 2 + 1 + 6
"""The norms, the limits below zero, and a limit for each parameter's gradient."""
LIMIT = 60
"""Operations of the whole step, without clipping, at most."""


@pytest.fixture(autouse=True)
def _arithmetic_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU alone torch's kernels step members, and arithmetic is done in blocks."""
    monkeypatch.setattr(KernelOptimizer, "_runs", lambda *_: [])
    monkeypatch.setattr(bucket, "LIMIT", 2**40)


def stack_step(members: int, *, precision: str = "fp32", own_batches: bool = True, **settings: Any) -> tuple[Step, Any]:
    torch.manual_seed(0)
    models = [MLP(8, 3, hidden=[8, 8]) for _ in range(members)]
    model = StackedModel(models, own_batches=own_batches)
    optims = [build(partial(torch.optim.Adam, lr=1e-3 * (1 + k)), each.parameters()) for k, each in enumerate(models)]
    optimizer = stack_optimizers(optims, dict(zip(models[0].parameters(), model.parameters(), strict=True)))
    made = make_precision(precision, torch.device("cpu")) if precision != "fp32" else Precision()
    chosen = {"clip": NoClip(), "accumulate": 1} | settings
    leading = [members] if own_batches else []
    batch = (torch.randn(*leading, 4, 8), torch.randint(3, (*leading, 4)))
    return make_step(model.train_step, optimizer, precision=made, stacked=True, **chosen), batch


@pytest.mark.parametrize("members", [2, 16, 64])
def test_a_step_of_a_stack(members: int) -> None:
    step, batch = stack_step(members)
    step(batch, 0, 1)
    counted = operations(step, batch)
    numbers = counted.numbers()
    assert numbers["forward and backward"] == FORWARD_AND_BACKWARD, counted.phases
    assert numbers["optimizer"] <= OPTIMIZER, counted.phases
    assert sum(numbers.values()) <= LIMIT


@pytest.mark.parametrize("members", [2, 16])
def test_a_batch_that_members_share(members: int) -> None:
    """Its targets are laid out once for each member."""
    step, batch = stack_step(members, own_batches=False)
    step(batch, 0, 1)
    counted = operations(step, batch)
    assert counted.numbers()["forward and backward"] == FORWARD_AND_BACKWARD + 1, counted.phases


@pytest.mark.parametrize("members", [2, 16])
@pytest.mark.parametrize(("clip", "expected"), [(StackedClipGradNorm, NORM), (StackedClipGradValue, VALUE)])
def test_clipping(clip: Any, expected: int, members: int) -> None:
    step, batch = stack_step(members, clip=clip([1.0 + k for k in range(members)]))
    step(batch, 0, 1)
    counted = operations(step, batch)
    assert counted.numbers()["clipping"] == expected, counted.phases
    assert counted.numbers()["forward and backward"] == FORWARD_AND_BACKWARD


@pytest.mark.parametrize("members", [2, 16])
def test_a_group_of_batches(members: int) -> None:
    """The second batch adds to the gradients of the six parameters; a division of the losses is no operation."""
    step, batch = stack_step(members, accumulate=2)
    for position in range(2):
        step(batch, position, 2)
    first, second = (operations(step, batch, position, 2) for position in range(2))
    assert first.numbers() == {"forward and backward": FORWARD_AND_BACKWARD}, first.phases
    assert second.numbers()["forward and backward"] == FORWARD_AND_BACKWARD + 6, second.phases


def test_half_of_the_precision_casts_each_operand_once() -> None:
    """There and back: 6 parameters; there alone: the batch; and the logits, which the loss takes in float32."""
    step, batch = stack_step(4, precision="bf16")
    step(batch, 0, 1)
    counted = operations(step, batch)
    assert counted.numbers()["forward and backward"] == FORWARD_AND_BACKWARD + 2 * 6 + 1 + 2, counted.phases
