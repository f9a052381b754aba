"""Adam and AdamW with their arguments kept between steps: the same bits as their own step, whatever lies between."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trainyard.optim.fused_adam import FusedAdam
from trainyard.optim.without_dynamo import UnwrappedStep, method

EVENTS = ("step", "step", "no_gradient", "load", "rate", "weight_decay", "clear", "replace", "group", "moved", "saved")


def params(count: Any, dtype: Any = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(count)
    return [nn.Parameter(torch.randn(n + 1, 3, generator=generator, dtype=dtype)) for n in range(count)]


class Side:
    """An optimizer over two groups, and its step."""

    def __init__(self, kind: Any, dtype: Any, step_of: Any, **arguments: Any) -> None:
        self.params = params(5, dtype)
        self.later = params(2, dtype)
        groups = [{"params": self.params[:3], "lr": 0.1}, {"params": self.params[3:]}]
        self.optimizer = kind(groups, lr=0.01, fused=True, **arguments)
        self.step = step_of(self.optimizer)

    def happen(self, event: Any, number: Any) -> None:
        optimizer = self.optimizer
        everything = [param for group in optimizer.param_groups for param in group["params"]]
        generator = torch.Generator().manual_seed(number)
        for param in everything:
            param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
        match event:
            case "no_gradient":
                everything[number % len(everything)].grad = None
            case "load":
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            case "rate":
                optimizer.param_groups[number % 2]["lr"] = 0.001 * number
            case "weight_decay":
                optimizer.param_groups[0].update(weight_decay=0.1, betas=(0.5, 0.9))
            case "clear":
                optimizer.state.clear()
            case "replace":
                optimizer.state[everything[0]] = copy.deepcopy(optimizer.state[everything[1]])
                optimizer.state[everything[0]].update(
                    {name: torch.zeros_like(everything[0]) for name in optimizer.state[everything[1]] if name != "step"}
                )
            case "group" if self.later:
                optimizer.add_param_group({"params": [self.later.pop()]})
                optimizer.param_groups[-1]["params"][0].grad = torch.ones_like(optimizer.param_groups[-1]["params"][0])
            case "moved":
                for state in optimizer.state.values():
                    state.update({name: tensor.clone() for name, tensor in state.items()})
            case "saved":
                self.kept = copy.deepcopy(optimizer.state_dict()["state"])
        with torch.no_grad():
            self.step()


def state_of(side: Any) -> Any:
    return [
        [param, *(side.optimizer.state[param][name] for name in sorted(side.optimizer.state[param]))]
        for group in side.optimizer.param_groups
        for param in group["params"]
        if param in side.optimizer.state
    ]


@settings(max_examples=60)
@given(
    st.sampled_from([torch.optim.Adam, torch.optim.AdamW]),
    st.sampled_from([torch.float32, torch.float64]),
    st.fixed_dictionaries(
        {"amsgrad": st.booleans(), "maximize": st.booleans(), "weight_decay": st.sampled_from([0, 0.1])}
    ),
    st.lists(st.sampled_from(EVENTS), max_size=12),
)
def test_the_same_bits_as_the_optimizers_own_step(kind: Any, dtype: Any, arguments: Any, events: Any) -> None:
    own = Side(kind, dtype, lambda optimizer: method(optimizer, "step"), **arguments)
    kept = Side(kind, dtype, UnwrappedStep, **arguments)
    for number, event in enumerate(["step", *events, "step"], 1):
        for side in (own, kept):
            side.happen(event, number)
        for ours, theirs in zip(state_of(kept), state_of(own), strict=True):
            assert all(map(torch.equal, ours, theirs))


@pytest.fixture
def count() -> Any:
    """Counts the steps that are the optimizer's own."""
    param = nn.Parameter(torch.ones(3))
    other = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.Adam([{"params": [param]}, {"params": [other]}], fused=True)
    calls = []
    step = method(optimizer, "step")
    fused = FusedAdam(optimizer, lambda: calls.append(step()))

    def steps(number: Any, *without: Any) -> Any:
        for _ in range(number):
            for one in (param, other):
                one.grad = None if one is other and without else torch.ones_like(one)
            with torch.no_grad():
                fused()
        return len(calls)

    return steps


def test_one_step_is_the_optimizers_own(count: Any) -> None:
    assert count(5) == 1


def test_a_parameter_that_learns_later(count: Any) -> None:
    assert count(3, "other") == 3
    assert count(5) == 4


def test_counts_are_saved_one_by_one(tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(params(3), fused=True)
    step = UnwrappedStep(optimizer)
    for _ in range(3):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        with torch.no_grad():
            step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert [float(state["step"]) for state in loaded["state"].values()] == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("arguments", [{}, {"foreach": True}, {"capturable": True}])
def test_only_what_is_fused_is_taken(arguments: Any) -> None:
    assert not FusedAdam.takes(torch.optim.Adam(params(1), **arguments))


def test_a_class_of_ones_own_is_left_alone() -> None:
    class Mine(torch.optim.Adam):
        pass

    assert not FusedAdam.takes(Mine(params(1), fused=True))
    assert FusedAdam.takes(torch.optim.Adam(params(1), fused=True))
