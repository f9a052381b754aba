"""Stacks whose numbers lie in another order of memory, such as channels_last."""

from functools import partial
from typing import Any

import pytest
import torch

from trainyard.fused.model import StackedModel
from trainyard.fused.optim import kernel, stack_optimizers
from trainyard.models import CNN
from trainyard.models.base import total_loss
from trainyard.optim import Lion, build

OPTIM = torch.optim
SHAPES = [(3, 4, 2, 2), (3,), (2, 3, 1, 1)]
NUMBERS = [{"lr": 0.01 * k, "weight_decay": 0.1 * k} for k in range(1, 5)]


def in_channels_last(stack: torch.Tensor) -> torch.Tensor:
    """A copy of a stack in which each member's convolutions are in channels_last."""
    return torch.stack([row.to(memory_format=torch.channels_last) if row.dim() == 4 else row for row in stack])


@pytest.mark.parametrize("alone", [1, 2**15], ids=["large", "small"])
@pytest.mark.parametrize("same", [True, False], ids=["gradients alike", "gradients contiguous"])
@pytest.mark.parametrize("kind", [OPTIM.SGD, OPTIM.Adam, OPTIM.AdamW, OPTIM.Adagrad, OPTIM.RMSprop, Lion])
def test_members_step_as_alone(pair: Any, kind: Any, same: bool, alone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "ALONE", alone)
    both = pair(kind, NUMBERS, shapes=SHAPES)
    for param in both.stacked:
        param.data = in_channels_last(param.data)
    for step in range(4):
        both.gradients()
        if same:
            for param in both.stacked:
                param.grad = in_channels_last(param.grad)
        for solo in both.solos:
            solo.step()
        both.optimizer.step()
        if step == 1:
            both.keep([3, 1])
    assert both.distance() < 1e-12
    both.check_states()
    for param in both.stacked:
        states = [value for value in both.optimizer.state[param].values() if value.shape == param.shape]
        assert {value.stride() for value in states} <= {param.stride()}


def test_a_model_in_channels_last() -> None:
    """Its gradients are as its parameters; the states stay so too when members leave."""
    torch.manual_seed(0)
    models: list[Any] = [CNN(3, 5, [4, 6]) for _ in range(3)]
    for model in models:
        model.to(memory_format=torch.channels_last)
    solos = [build(partial(OPTIM.Adam, lr=0.01), model.parameters()) for model in models]
    stack = StackedModel(models)
    whole = dict(stack.named_parameters())
    optimizer = stack_optimizers(
        solos, {param: whole[name.replace(".", "/")] for name, param in models[0].named_parameters()}
    )
    batch = torch.randn(8, 3, 8, 8), torch.randint(5, (8,))
    for kept in ([2, 0], [0, 1]):
        total_loss(stack.train_step(batch), stacked=True).sum().backward()
        optimizer.step()
        first = next(param for param in whole.values() if param.dim() == 5)
        assert first.stride()[2] == 1
        for param in whole.values():
            assert param.grad.stride() == param.stride()
            assert optimizer.state[param]["exp_avg"].stride() == param.stride()
            param.grad = None
        stack.keep(kept)
        optimizer.keep(torch.tensor(kept))
