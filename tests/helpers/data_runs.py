"""What holds for every kind of data: a run that is resumed ends with the same bits, and a stack follows its members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from interrupting import InterruptAt

from trainyard.fused.runner import FusedRunner
from trainyard.runner import Runner

Config = dict[str, Any]


def training(data: Any, model: Any, **more: Any) -> Config:
    """A short training on the CPU."""
    values: Config = {
        "data": data,
        "model": model,
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-2},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 3},
        "hook": {"logger": {"_target_": "trainyard.hooks.Logger"}},
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "objective": "val/loss",
        "device": "cpu",
        "seed": 1,
    }
    return values | more


def trained(values: Config) -> Runner:
    runner = Runner.from_cfg(values)
    runner.train()
    return runner


def same_weights(one: Runner, other: Runner) -> None:
    theirs = other.model.state_dict()
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def resumes_to_the_bits(values: Config, folder: Path, iteration: int) -> None:
    """A run that is interrupted after an iteration, in the middle of an epoch, and resumed ends with the same bits."""
    saving = values["hook"] | {"checkpoint": {"_target_": "trainyard.hooks.Checkpoint"}}
    whole = trained(values | {"hook": saving, "work_dir": str(folder / "whole")})
    begun = values | {"work_dir": str(folder / "begun")}
    stop = {"stop": {"_target_": InterruptAt, "iteration": iteration}}
    first = trained(begun | {"hook": saving | stop})
    assert first.iter == iteration
    assert first.batches_done
    resumed = Runner.from_cfg(begun | {"hook": saving, "resume": True})
    resumed.prepare()
    assert resumed.iter == iteration
    resumed.train()
    assert resumed.iter == whole.iter
    same_weights(resumed, whole)


def stack_follows_members(values: Config, seeds: int = 3) -> None:
    """A stack over seeds trains what each member trains alone, to rounding."""
    configs = [values | {"seed": seed} for seed in range(seeds)]
    fused = FusedRunner(configs)
    fused.train()
    for member, config in zip(fused.all_members, configs, strict=True):
        alone = trained(config).model.state_dict()
        for name, tensor in member.model.state_dict().items():
            torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-5, msg=name)
