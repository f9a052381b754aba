"""With `strict=false`, each value is judged once: alone, in a stack, buffered or not, and after an interruption."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from trainyard.data import Data
from trainyard.data.tensor_loader import TensorLoader
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import EarlyStopping, Hook
from trainyard.runner import Runner, checkpoint
from trainyard.track import scalars

BATCHES = 6
PATIENCE = 2


class Points(Data):
    """Two classes of points in the plane, apart by a circle."""

    def __init__(self) -> None:
        self.spec = {"num_classes": 2, "in_features": 2}
        self.splits = ("train", "val")
        self.x = torch.randn(10 * BATCHES, 2, generator=torch.Generator().manual_seed(0))
        self.y = (self.x.norm(dim=1) > 1.1).long()

    def loader(self, split: Any, *, seed: Any, device: Any) -> Any:
        return TensorLoader((self.x, self.y), 10, shuffle=split == "train", seed=seed, device=device)


class Rare(Hook):
    """Records a metric of its own at every second validation of the first member, every third of the next, …"""

    stackable = True

    def __init__(self, priority: str = "HIGH") -> None:
        self.priority = priority

    def after_val_epoch(self, runner: Any, metrics: Any) -> None:
        for member in runner.members:
            if member.epoch % (member.seed + 2) == 0:
                member.record({"val/rare": 0.5}, step=member.iter, epoch=member.epoch)


class Interrupt(Hook):
    """What a signal does, at a given iteration."""

    stackable = True

    def __init__(self, at: int) -> None:
        self.at = at

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.at:
            runner.interrupt()


def config(seed: int, folder: Path, monitor: str, *, stop_at: int = 0, **more: Any) -> Any:
    hooks = {
        "logger": {"_target_": "trainyard.hooks.Logger", "interval": 2 * BATCHES},
        "checkpoint": {"_target_": "trainyard.hooks.Checkpoint", "max_keep": None},
        "rare": {"_target_": Rare},
        "stop": {
            "_target_": EarlyStopping,
            "monitor": monitor,
            "strict": False,
            "patience": PATIENCE,
            "min_delta": 100,
        },
    }
    return {
        "model": {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [8]},
        "data": {"_target_": Points},
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.02},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 14},
        "hook": hooks | ({"interrupt": {"_target_": Interrupt, "at": stop_at}} if stop_at else {}),
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "device": "cpu",
        "seed": seed,
        "work_dir": str(folder / str(seed)),
        **more,
    }


def train(kind: str, *given: Any, **more: Any) -> None:
    configs = [config(seed, *given, **more) for seed in range(3)]
    if kind == "stack":
        FusedRunner(configs).train()
        return
    for own in configs:
        Runner.from_cfg(own).train()


def last_checkpoint(folder: Path, seed: int) -> Path:
    checkpoints = folder / str(seed) / "checkpoints"
    return checkpoints / str(json.loads((checkpoints / "last.json").read_text())["history"][-1])


def last_states(folder: Path) -> Any:
    """The last checkpoint of each member: its end, the steps of its values, and the state of early stopping."""
    found = []
    for seed in range(3):
        state = checkpoint.load(last_checkpoint(folder, seed))
        member, hook = state["member"], state["hooks"]["stop"]
        found.append((state["epoch"], member["stop_reason"] is not None, member["metric_steps"], hook))
    return found


@pytest.fixture(params=["buffered", "immediate"])
def buffered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points of the training wait as long as they can, or are written at once."""
    monkeypatch.setattr(scalars, "SECONDS", 1e9 if request.param == "buffered" else 0.0)
    monkeypatch.setattr(scalars, "MOST", 512 if request.param == "buffered" else 1)


@pytest.mark.parametrize("kind", ["single", "stack"])
@pytest.mark.parametrize(("monitor", "every"), [("val/rare", (2, 3, 4)), ("train/loss", (2, 2, 2))])
def test_each_value_is_judged_once(tmp_path: Path, buffered: None, kind: str, monitor: str, every: Any) -> None:
    train(kind, tmp_path, monitor)
    for (epoch, stopped, steps, hook), own in zip(last_states(tmp_path), every, strict=True):
        assert (epoch, stopped) == ((1 + PATIENCE) * own, True)
        assert (hook["waited"], hook["judged"]) == (PATIENCE, epoch * BATCHES)
        assert steps[monitor] == epoch * BATCHES


@pytest.mark.parametrize("after", ["single", "stack"])
@pytest.mark.parametrize("before", ["single", "stack"])
@pytest.mark.parametrize("monitor", ["val/rare", "train/loss"])
@pytest.mark.parametrize("at", [3 * BATCHES, 4 * BATCHES + 2])
def test_a_resumed_run_does_not_judge_a_value_again(
    tmp_path: Path, monitor: str, before: str, after: str, at: int
) -> None:
    train("single", tmp_path / "whole", monitor)
    train(before, tmp_path / "parts", monitor, stop_at=at)
    train(after, tmp_path / "parts", monitor, resume=True)
    assert last_states(tmp_path / "parts") == last_states(tmp_path / "whole")


def test_a_value_that_is_recorded_after_it_is_read_is_judged_at_the_next_validation(make: Any) -> None:
    hooks = {"stop": EarlyStopping("val/rare", strict=False, patience=2), "rare": Rare("LOW")}
    runner = make(hooks, epochs=9)
    runner.train()
    assert runner.epoch == 7  # values of the epochs 2, 4 and 6


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Runner.from_cfg(config(0, tmp_path, "val/rare", stop_at=3 * BATCHES)).train()
    file = last_checkpoint(tmp_path, 0)
    state = checkpoint.load(file)
    del state["member"]["metric_steps"], state["hooks"]["stop"]["judged"]
    torch.save(state, file)
    with caplog.at_level(logging.WARNING):
        Runner.from_cfg(config(0, tmp_path, "val/rare", resume=True)).train()
    assert "skips validations without a new value" in caplog.text
    assert checkpoint.load(last_checkpoint(tmp_path, 0))["epoch"] == 6
