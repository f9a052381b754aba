"""Members that end before the others leave the group, and nobody else notices."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import alike
from torch import Tensor

from trainyard.data import Data
from trainyard.data.tensor_loader import TensorLoader
from trainyard.fused.model import StackedModel
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import Hook
from trainyard.models import MLP
from trainyard.runner import Runner

Config = dict[str, Any]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Points(Data):
    """Two classes of points in the plane, apart by a circle."""

    def __init__(self) -> None:
        self.spec = {"num_classes": 2, "in_features": 2}
        self.splits = ("train", "val", "test")
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(60, 2, generator=generator)
        self.y = (self.x.norm(dim=1) > 1.1).long()

    def loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        return TensorLoader((self.x, self.y), 10, shuffle=split == "train", seed=seed, device=device)


class Poison(Hook):
    """Spoils one weight of the member of a given seed, at a given iteration."""

    stackable = True

    def __init__(self, seed: int, at: int) -> None:
        self.seed = seed
        self.at = at

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        for solo in runner.members:
            if solo.seed == self.seed and runner.iter == self.at:
                with torch.no_grad():
                    next(iter(solo.model.parameters())).view(-1)[0] = math.nan


class StopAt(Hook):
    """Stops the member of a given seed at the end of a given epoch."""

    stackable = True

    def __init__(self, seed: int, epoch: int) -> None:
        self.seed = seed
        self.epoch = epoch

    def after_train_epoch(self, runner: Runner) -> None:
        for member in runner.members:
            if member.seed == self.seed and runner.epoch == self.epoch:
                member.stop("it was told to")


def config(member: int, folder: Path | None, **hooks: Config) -> Config:
    return {
        "model": {"_target_": MLP, "in_features": 2, "num_classes": 2, "hidden": [8], "batch_norm": True},
        "data": {"_target_": Points},
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01 * (member + 1), "fused": True},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 12},
        "hook": {
            "logger": {"_target_": "trainyard.hooks.Logger", "interval": 4},
            "ema": {"_target_": "trainyard.hooks.EMA", "decay": 0.5},
            "checkpoint": {"_target_": "trainyard.hooks.Checkpoint", "interval": 5},
            "nan_guard": {"_target_": "trainyard.hooks.NaNGuard", "interval": 1},
        }
        | hooks,
        "metric": {
            "accuracy": {"_target_": "trainyard.metrics.Accuracy"},
            "confusion": {"_target_": "trainyard.metrics.ConfusionMatrix"},
        },
        "objective": "val/accuracy",
        "direction": "maximize",
        "device": "cpu",
        "seed": member,
        "work_dir": None if folder is None else str(folder / str(member)),
    }


def trained(runner: Runner) -> Runner:
    """What the application does: train, and test the best."""
    with runner.session():
        runner.train()
        runner.load_best()
        runner.test()
    return runner


def test_a_member_with_nan_touches_no_other(tmp_path: Path) -> None:
    poison = {"_target_": Poison, "seed": 1, "at": 23}
    fused = FusedRunner([config(member, tmp_path / "fused", poison=poison) for member in range(3)])
    trained(fused)
    assert [member.failed for member in fused.all_members] == [False, True, False]
    assert fused.stack.size == 2
    for member in range(3):
        solo = Runner.from_cfg(config(member, tmp_path / "solo", poison=poison))
        with solo.session():
            solo.train()
            if not solo.members[0].failed:
                solo.load_best()
                solo.test()
        assert solo.members[0].failed == (member == 1)
        alike(tmp_path / "fused" / str(member), tmp_path / "solo" / str(member))
        ours = fused.all_members[member].stop_reason
        assert ours == solo.members[0].stop_reason


@pytest.mark.parametrize("hook", ["early stopping", "a hook's own reason"])
def test_a_member_that_stops_leaves_the_others(tmp_path: Path, hook: str) -> None:
    stop: Config = {"_target_": StopAt, "seed": 2, "epoch": 3}
    if hook == "early stopping":
        stop = {"_target_": "trainyard.hooks.EarlyStopping", "patience": 2}
    fused = FusedRunner([config(member, tmp_path / "fused", stop=stop) for member in range(4)])
    trained(fused)
    ends = set()
    for member in range(4):
        solo = trained(Runner.from_cfg(config(member, tmp_path / "solo", stop=stop)))
        alike(tmp_path / "fused" / str(member), tmp_path / "solo" / str(member))
        own = fused.all_members[member]
        assert own.iter == solo.iter
        assert own.stop_reason == solo.members[0].stop_reason
        expected = {key: value for key, value in solo.members[0].metrics.items() if "time" not in key}
        assert {k: v for k, v in own.metrics.items() if "time" not in k} == pytest.approx(expected)
        assert "test/accuracy" in expected
        ends.add(solo.iter)
    assert len(ends) > 1, "nobody left before the others: this has tested nothing"


def test_what_is_left_computes_the_same(tmp_path: Path) -> None:
    """Cutting members out changes no bit of what the others hold, and their next step only by rounding."""
    models = [MLP(2, 2, [8], batch_norm=True) for _ in range(4)]
    alone = [copy.deepcopy(model) for model in models]
    stack = StackedModel(models)
    stack.keep([3, 1])
    for stacked, index in zip(stack.models, [3, 1], strict=True):
        assert stacked is models[index]
    for model, before in zip(models, alone, strict=True):  # those that left, too
        for (name, tensor), expected in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
            assert torch.equal(tensor, expected), name
    batch = (torch.randn(6, 2), torch.randint(2, (6,)))
    losses: Tensor = stack.train_step(batch)["loss"]
    for loss, index in zip(losses, [3, 1], strict=True):
        torch.testing.assert_close(loss, alone[index].train_step(batch)["loss"])


def test_a_plateau_of_each_member(tmp_path: Path) -> None:
    """A schedule that looks at the metric lowers each member's rate at its own time, also after others have left."""
    plateau = {"_target_": "trainyard.schedules.Plateau", "patience": 0, "factor": 0.5}
    stop = {"_target_": StopAt, "seed": 0, "epoch": 5}
    schedule = {"_target_": "trainyard.hooks.ParamSchedule"}
    hooks = {"stop": stop, "rates": schedule}
    fused = FusedRunner([config(k, tmp_path / "fused", **hooks) | {"schedule": plateau} for k in range(3)])
    fused.train()
    rates = set()
    for member in range(3):
        solo = Runner.from_cfg(config(member, tmp_path / "solo", stop=stop, rates=schedule) | {"schedule": plateau})
        solo.train()
        alike(tmp_path / "fused" / str(member), tmp_path / "solo" / str(member))
        rates.add(solo.members[0].metrics["train/lr"])
    assert len(rates) == 3
