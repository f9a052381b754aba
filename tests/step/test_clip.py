"""Clipping by norm and by value, alone and for the members of a group."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainyard.data import Rings
from trainyard.errors import ConfigError, Unfusable
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import Hook
from trainyard.models import MLP
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.step.clip import ClipGradNorm, ClipGradValue, NoClip, make_clip
from trainyard.step.stacked import StackedClipGradValue, stack_clips


class Norms(Hook):
    stackable = True

    def __init__(self) -> None:
        self.all: list[Tensor] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: dict[str, Tensor]) -> None:
        if "grad_norm" in outputs:
            self.all.append(outputs["grad_norm"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_the_one_written_by_hand(accumulate: int) -> None:
    torch.manual_seed(0)
    model = MLP(in_features=2, num_classes=2, hidden=[8])
    torch.manual_seed(0)
    by_hand = MLP(in_features=2, num_classes=2, hidden=[8])
    data, hook = Rings(num_samples=64, batch_size=16, val_fraction=0, test_fraction=0), Norms()
    Runner(
        model,
        data,
        partial(torch.optim.SGD, lr=0.5),
        loop=EpochBasedTrainLoop(1),
        hooks={"norms": hook},
        clip_grad_value=0.01,
        accumulate=accumulate,
        device="cpu",
    ).train()

    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.5)
    norms = []
    for index, batch in enumerate(data.loader("train", seed=0, device=torch.device("cpu")).batches()):
        (by_hand.train_step(batch)["loss"] / accumulate).backward()
        if (index + 1) % accumulate == 0:
            norms.append(torch.cat([param.grad.flatten() for param in by_hand.parameters()]).norm())
            nn.utils.clip_grad_value_(by_hand.parameters(), 0.01)
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(torch.stack(hook.all), torch.stack(norms))


@given(data=st.data())
def test_each_member_is_clipped_as_it_would_be_alone(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    limits = data.draw(st.lists(st.sampled_from([1e-3, 0.1, 1, 1e4]), min_size=count, max_size=count))
    kind = data.draw(st.sampled_from(["norm", "value"]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    shapes = [(3,), (), (2, 2), (0,)]
    stacks = [nn.Parameter(torch.zeros(count, *shape)) for shape in shapes] + [nn.Parameter(torch.zeros(count))]
    for stack in stacks[:-1]:
        stack.grad = torch.randn(stack.shape, generator=generator)
    if data.draw(st.booleans()):
        stacks[0].grad[0, 0] = torch.nan
    alone = []
    for index in range(count):
        params = [nn.Parameter(stack.detach()[index]) for stack in stacks]
        for param, stack in zip(params, stacks, strict=True):
            param.grad = None if stack.grad is None else stack.grad[index].clone()
        alone.append(params)
    nones = [None] * count
    stacked = stack_clips(limits, nones) if kind == "norm" else stack_clips(nones, limits)
    norms = stacked(stacks)["grad_norm"]
    for index, params in enumerate(alone):
        clip = make_clip(limits[index], None) if kind == "norm" else make_clip(None, limits[index])
        torch.testing.assert_close(clip(params)["grad_norm"], norms[index], equal_nan=True)
        for param, stack in zip(params, stacks, strict=True):
            if param.grad is not None:
                torch.testing.assert_close(param.grad, stack.grad[index], equal_nan=True)


def test_without_gradients_there_is_nothing_to_clip() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    assert ClipGradValue(1.0)([parameter])["grad_norm"] == 0
    assert StackedClipGradValue([1.0, 2.0])([parameter])["grad_norm"].tolist() == [0, 0]


def member(index: int, **clip: Any) -> dict[str, Any]:
    return {
        "model": {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [8]},
        "data": {"_target_": "trainyard.data.Rings", "num_samples": 100, "batch_size": 16, "test_fraction": 0},
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.05},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 3},
        "hook": {"logger": {"_target_": "trainyard.hooks.Logger"}},
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "device": "cpu",
        "seed": index,
    } | clip


@pytest.mark.parametrize("name", ["clip_grad_norm", "clip_grad_value"])
def test_a_fused_group_follows_its_solo_runs(name: str) -> None:
    limits = [1e-4, 0.05, 100.0]
    fused = FusedRunner([member(index, **{name: limit}) for index, limit in enumerate(limits)])
    fused.train()
    for index, limit in enumerate(limits):
        solo = Runner.from_cfg(member(index, **{name: limit}))
        solo.train()
        own = fused.members[index]
        for one, other in zip(own.model.parameters(), solo.model.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        logged = own.metrics["train/grad_norm"]
        assert logged == pytest.approx(solo.members[0].metrics["train/grad_norm"], rel=1e-3)


def test_members_that_leave_take_their_limits_along() -> None:
    clip = StackedClipGradValue([1.0, 2.0, 3.0])
    clip.keep(torch.tensor([0, 2]))
    parameter = nn.Parameter(torch.zeros(2, 1))
    parameter.grad = torch.tensor([[9.0], [-9.0]])
    clip([parameter])
    assert parameter.grad.tolist() == [[1.0], [-3.0]]


@pytest.mark.parametrize(
    ("norms", "values", "told"),
    [
        ([1.0, None], [None, None], "some members clip their gradients and some do not"),
        ([None, None], [None, 2.0], "some members clip their gradients and some do not"),
        ([1.0, None], [None, 2.0], "some members clip their gradients by norm and some by value"),
    ],
)
def test_members_that_do_not_clip_alike(norms: Any, values: Any, told: str) -> None:
    with pytest.raises(Unfusable, match=told):
        stack_clips(norms, values)


def test_the_kinds() -> None:
    assert type(make_clip(None, None)) is NoClip
    assert type(make_clip(1, None)) is ClipGradNorm
    assert type(make_clip(None, 1)) is ClipGradValue
    assert type(stack_clips([None, None], [None, None])) is NoClip


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"clip_grad_value": 0}, "clip_grad_value: 0 is invalid. Expected a number above 0"),
        ({"clip_grad_value": float("nan")}, "clip_grad_value: nan is invalid"),
        (
            {"clip_grad_value": 1.0, "clip_grad_norm": 2.0},
            "clip_grad_value: 1.0 is invalid. Expected null, because clip_grad",
        ),
    ],
)
def test_settings_that_cannot_work(settings: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Runner.from_cfg(member(0, **settings)).train()
    assert told in str(error.value)
