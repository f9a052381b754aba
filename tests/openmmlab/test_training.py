"""Whole trainings: the same weights, to the bit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import ours, theirs
from torch import optim

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1},
    "SGD with momentum": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
    "Adam": {"lr": 0.01, "weight_decay": 0.1},
    "AdamW": {"lr": 0.01, "betas": (0.8, 0.99)},
    "RMSprop": {"lr": 0.01, "momentum": 0.5},
    "Adagrad": {"lr": 0.1},
    "Adamax": {"lr": 0.02},
}


def pair(name: str, **more: Any) -> tuple[dict[str, Any], Any]:
    """An optimizer as each side is given it; `foreach` is set here for small models alone, and fixed for both."""
    kind, numbers = name.split()[0], OPTIMIZERS[name] | {"foreach": False}
    return {"type": kind, **numbers}, partial(getattr(optim, kind), **numbers, **more)


@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_weights_are_equal(name: str, by_epoch: bool, tmp_path: Path) -> None:
    length = 4 if by_epoch else 11
    optimizer, partial_of_it = pair(name)
    other = theirs(tmp_path / "a", length=length, by_epoch=by_epoch, optimizer=optimizer)
    own = ours(tmp_path / "b", length=length, by_epoch=by_epoch, optim=partial_of_it)
    assert own.iterations == other.iterations
    assert torch.equal(own.weights, other.weights)


@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize("clip", ["norm", "value"])
def test_the_weights_are_equal_with_clipped_gradients(clip: str, by_epoch: bool, tmp_path: Path) -> None:
    limit: dict[str, Any] = {"max_norm": 0.05} if clip == "norm" else {"type": "value", "clip_value": 0.01}
    optimizer, partial_of_it = pair("SGD with momentum")
    arguments: Any = {"length": 5, "by_epoch": by_epoch}
    other = theirs(tmp_path / "a", optimizer=optimizer, wrapper={"clip_grad": limit}, **arguments)
    own = ours(
        tmp_path / "b",
        optim=partial_of_it,
        **arguments,
        clip_grad_norm=limit.get("max_norm"),
        clip_grad_value=limit.get("clip_value"),
    )
    torch.testing.assert_close(own.weights, other.weights, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_accumulation(accumulate: int, tmp_path: Path) -> None:
    """Where an epoch is a number of whole groups, or the run an iteration loop of them."""
    optimizer, partial_of_it = pair("SGD with momentum")
    arguments: Any = {"length": 3, "batches": 12}
    other = theirs(tmp_path / "a", optimizer=optimizer, wrapper={"accumulative_counts": accumulate}, **arguments)
    own = ours(tmp_path / "b", optim=partial_of_it, accumulate=accumulate, **arguments)
    torch.testing.assert_close(own.weights, other.weights, rtol=1e-6, atol=1e-7)


def test_accumulation_over_the_end_of_an_epoch(tmp_path: Path) -> None:
    """There a group goes on in the next epoch; here it ends with its own."""
    optimizer, partial_of_it = pair("SGD")
    arguments: Any = {"length": 2, "batches": 3}
    other = theirs(tmp_path / "a", optimizer=optimizer, wrapper={"accumulative_counts": 2}, **arguments)
    own = ours(tmp_path / "b", optim=partial_of_it, accumulate=2, **arguments)
    assert not torch.allclose(own.weights, other.weights, rtol=1e-3)
    arguments = {"length": 6, "batches": 3, "by_epoch": False}
    other = theirs(tmp_path / "c", optimizer=optimizer, wrapper={"accumulative_counts": 2}, **arguments)
    own = ours(tmp_path / "d", optim=partial_of_it, accumulate=2, **arguments)
    torch.testing.assert_close(own.weights, other.weights, rtol=1e-6, atol=1e-7)


def test_parameter_groups_and_a_schedule(tmp_path: Path) -> None:
    rules = {"norm_decay_mult": 0.0, "bias_lr_mult": 2.0, "custom_keys": {"net.3": {"lr_mult": 0.5}}}
    optimizer, partial_of_it = pair("SGD with momentum", paramwise=rules)
    other = theirs(
        tmp_path / "a",
        length=5,
        optimizer=optimizer,
        wrapper={"paramwise_cfg": rules},
        schedulers=[{"type": "MultiStepLR", "milestones": [2, 4], "gamma": 0.1}],
    )
    schedule = {
        "_target_": "trainyard.schedules.Schedule",
        "scheduler": partial(optim.lr_scheduler.MultiStepLR, milestones=[2, 4], gamma=0.1),
        "by": "epoch",
    }
    own = ours(tmp_path / "b", length=5, optim=partial_of_it, schedule=schedule)
    assert torch.equal(own.weights, other.weights)
