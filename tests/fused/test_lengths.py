"""Stacks whose training data state a wrong length, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from interrupting import InterruptAt
from streams import CLASSES, FEATURES, Stream, sample
from torch.utils.data import DataLoader, TensorDataset

from trainyard.errors import Unfusable
from trainyard.fused.places import check_loops
from trainyard.fused.probe import probe
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import Checkpoint, Hook
from trainyard.runner import Runner

VAL = TensorDataset(torch.stack([sample(n)[0] for n in range(8)]), torch.arange(8) % CLASSES)


def config(rate: float, said: int | None, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "model": {"_target_": "trainyard.models.MLP", "in_features": FEATURES, "num_classes": CLASSES, "hidden": [6]},
        "data": {"train": DataLoader(Stream(10, said), 3), "val": DataLoader(VAL, 4)},
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": rate},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 3},
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "hook": {},
        "device": "cpu",
        "accumulate": 3,
        "seed": seed,
    } | more


@pytest.mark.parametrize("said", [None, 2, 40])
def test_members_train_on_all_that_comes(said: int | None) -> None:
    rates = [0.1, 0.2]
    stack = FusedRunner([config(rate, said) for rate in rates])
    stack.train()
    assert (stack.epoch, stack.iter) == (3, 12)
    for member, rate in zip(stack.members, rates, strict=True):
        alone = Runner.from_cfg(config(rate, said))
        alone.train()
        for name, value in alone.model.state_dict().items():
            torch.testing.assert_close(member.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_either_kind_of_run_resumes_the_other_within_an_epoch(tmp_path: Path) -> None:
    def hooks(*more: Hook) -> dict[str, Any]:
        return {"checkpoint": Checkpoint(), **{f"end{number}": hook for number, hook in enumerate(more)}}

    class End(InterruptAt):
        stackable = True

    folders = [tmp_path / name for name in "ab"]
    configs = [config(rate, None, work_dir=str(folder)) for rate, folder in zip((0.1, 0.2), folders, strict=True)]
    FusedRunner([values | {"hook": hooks(End(6))} for values in configs]).train()
    alone = Runner.from_cfg(configs[1] | {"hook": hooks(), "resume": True})
    alone.train()
    whole = Runner.from_cfg(config(0.2, None))
    whole.train()
    assert (alone.epoch, alone.iter, alone.batches_done) == (3, 12, 0)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(alone.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_seeds_that_differ_train_one_by_one() -> None:
    with pytest.raises(Unfusable, match="the seeds differ, but this DataLoader has only one order of the data"):
        FusedRunner([config(0.1, None, seed=seed) for seed in (0, 1)]).prepare()


def test_a_stack_of_unknown_length_is_measured() -> None:
    assert probe([config(rate, None) for rate in (0.1, 0.2)], of=2).note


class OwnLoop:
    """A loop that is not a `TrainLoop`."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds


def test_loops_that_are_no_train_loop_must_be_equal() -> None:
    check_loops([OwnLoop(3), OwnLoop(3)], 1)
    with pytest.raises(Unfusable, match="the members' loops differ, and OwnLoop is not a TrainLoop"):
        check_loops([OwnLoop(3), OwnLoop(4)], 1)
