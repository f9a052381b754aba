"""Linear layers and losses by class of all members at once, on CUDA: what each member computes alone."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from trainyard.fused.functional import StackedFunctions
from trainyard.fused.model import StackedModel
from trainyard.models import MLP, Transformer

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:There is a performance drop")]

K = 5
DEVICE = torch.device("cuda")
CASES: dict[str, tuple[Any, Any]] = {
    "mlp": (lambda: MLP(20, 7, hidden=[33, 16]), lambda: (torch.randn(K, 9, 20), torch.randint(7, (K, 9)))),
    "transformer": (lambda: Transformer(11, 8, 16, 1, 2), lambda: tuple(torch.randint(11, (2, K, 3, 8)))),
}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_members_alone(name: str, dtype: torch.dtype | None) -> None:
    make, draw = CASES[name]
    torch.manual_seed(0)
    batch = [part.to(DEVICE) for part in draw()]
    stack = StackedModel([make().to(DEVICE) for _ in range(K)], own_batches=True)
    assert isinstance(stack._functions, StackedFunctions)

    with torch.autocast(DEVICE.type, dtype) if dtype is not None else nullcontext():
        losses = stack.train_step(tuple(batch))["loss"]
        alone = [model.train_step([part[k] for part in batch])["loss"] for k, model in enumerate(stack.models)]
    losses.sum().backward()
    torch.stack(alone).sum().backward()

    bound = 1e-4 if dtype is None else 0.03
    pairs: list[Any] = [(losses, torch.stack(alone))]
    for path, parameter in stack.named_parameters():
        own: list[Any] = [model.get_parameter(path.replace("/", ".")).grad for model in stack.models]
        pairs.append((parameter.grad, torch.stack(own)))
    for found, expected in pairs:
        assert found.dtype == expected.dtype
        assert (found - expected).abs().max() <= bound * expected.abs().max().clamp_min(1e-3)
