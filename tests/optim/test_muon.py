"""Muon for matrices and AdamW for the other parameters, as one optimizer."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from trainyard.optim import Muon, build


def train(model: nn.Module, optimizers: Any, steps: int = 4) -> None:
    x = torch.linspace(-1, 1, 32).reshape(8, 4)
    for _ in range(steps):
        model.zero_grad()
        model(x).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)


def test_it_is_torchs_two_optimizers() -> None:
    one, two = net(), net()
    train(one, [build(Muon, one.parameters())])
    matrices = [each for each in two.parameters() if each.ndim == 2]
    rest = [each for each in two.parameters() if each.ndim != 2]
    muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    train(two, [muon, torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.1)])
    assert_same(one, two)


def test_it_goes_on_from_its_state() -> None:
    whole, part = net(), net()
    train(whole, [Muon(whole.parameters())], 6)
    first = Muon(part.parameters())
    train(part, [first], 3)
    again = Muon(part.parameters())
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    train(part, [again], 3)
    assert_same(whole, part)


def test_groups_and_those_that_join() -> None:
    model = net()
    optimizer = Muon([{"params": model[0].parameters(), "lr": 0.5}, {"params": [model[1].weight]}])
    assert [(group["lr"], len(group["params"]), "betas" in group) for group in optimizer.param_groups] == [
        (0.5, 1, False),
        (0.5, 1, True),
        (1e-3, 1, True),
    ]
    optimizer.add_param_group({"params": list(model[2].parameters())})
    before = copy.deepcopy(model[2].state_dict())
    train(model, [optimizer], 1)
    assert all((model[2].state_dict()[name] != value).any() for name, value in before.items())


def test_a_number_that_a_group_does_not_have_is_told(caplog: Any) -> None:
    model = net()
    rules = {"custom_keys": {"0.bias": {"momentum": 0.5}, "0.weight": {"betas": [0.8, 0.9]}, "2": {"momentum": 0.7}}}
    optimizer = build(partial(Muon, paramwise=rules), model.parameters(), model)
    assert [(group["name"], group.get("momentum"), group.get("betas")) for group in optimizer.param_groups] == [
        ("default", None, (0.9, 0.999)),
        ("0.weight", 0.95, None),
        ("0.bias", None, (0.9, 0.999)),
        ("2", 0.7, None),
        ("2", None, (0.9, 0.999)),
    ]
    assert sorted(record.message for record in caplog.records) == [
        "betas=[0.8, 0.9] has no effect in the parameter group '0.weight' of Muon, because all its parameters have two "
        "dimensions.",
        "momentum=0.5 has no effect in the parameter group '0.bias' of Muon, because none of its parameters has two "
        "dimensions.",
    ]
