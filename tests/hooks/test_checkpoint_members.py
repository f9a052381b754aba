"""Every option of these hooks for the members of a fused group: as alone, also after an interruption, either way."""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainyard.data import Data
from trainyard.data.tensor_loader import TensorLoader
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import Hook
from trainyard.runner import Runner, checkpoint

TIMES = ("train/time", "train/data_time")


@pytest.fixture(autouse=True)
def double() -> Iterator[Any]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Points(Data):
    """Two classes of points in the plane, apart by a circle."""

    def __init__(self) -> None:
        self.spec = {"num_classes": 2, "in_features": 2}
        self.splits = ("train", "val")
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(60, 2, generator=generator)
        self.y = (self.x.norm(dim=1) > 1.1).long()

    def loader(self, split: Any, *, seed: Any, device: Any) -> Any:
        return TensorLoader((self.x, self.y), 10, shuffle=split == "train", seed=seed, device=device)


class Interrupt(Hook):
    """What a signal does, at a given iteration."""

    stackable = True

    def __init__(self, at: Any) -> None:
        self.at = at

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.at:
            runner.interrupt()


class LeaveAt(Hook):
    """Stops the member of seed 1 at the end of an epoch."""

    stackable = True

    def __init__(self, epoch: Any) -> None:
        self.epoch = epoch

    def after_train_epoch(self, runner: Runner) -> None:
        for member in runner.members:
            if member.seed == 1 and runner.epoch == self.epoch:
                member.stop("it was told to")


AVERAGES = {
    "exponential": {"momentum": 0.2, "interval": 2, "evaluate": "both"},
    "swa": {"kind": "swa", "by": "epoch", "begin": 3, "update_buffers": True},
    "annealing": {"kind": "annealing", "decay": 0.9, "gamma": 4, "begin": 2, "evaluate": "both"},
}


def config(member: Any, folder: Any, average: Any, *, lr: Any = None, threshold: float = 0.99, **more: Any) -> Any:
    hooks = {
        "logger": {
            "_target_": "trainyard.hooks.Logger",
            "interval": 4,
            "window": {"grad_norm": 5},
            "smoothing": {"loss": 0.8},
        },
        "ema": {"_target_": "trainyard.hooks.EMA", **average},
        "checkpoint": {
            "_target_": "trainyard.hooks.Checkpoint",
            "begin": 3,
            "max_keep": None,
            "save_best": {"val/accuracy": "maximize", "val/loss": "minimize"},
            "published": True,
        },
        "nan_guard": {"_target_": "trainyard.hooks.NaNGuard", "action": "skip"},
        "early_stop": {
            "_target_": "trainyard.hooks.EarlyStopping",
            "monitor": "val/accuracy",
            "direction": "maximize",
            "patience": 20,
            "stopping_threshold": threshold,
        },
    }
    return {
        "model": {
            "_target_": "trainyard.models.MLP",
            "in_features": 2,
            "num_classes": 2,
            "hidden": [8],
            "batch_norm": "kind" in average,
        },
        "data": {"_target_": Points},
        "optim": {
            "_target_": "torch.optim.SGD",
            "_partial_": True,
            "momentum": 0.9,
            "lr": lr or 0.02 * (1 + 3 * member),
        },
        "clip_grad_norm": 3.0,
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 8},
        "hook": hooks | more.pop("hook", {}),
        "metric": {
            "accuracy": {"_target_": "trainyard.metrics.Accuracy"},
            "loss": {"_target_": "trainyard.metrics.CrossEntropy"},
        },
        "device": "cpu",
        "seed": member,
        "work_dir": str(folder / str(member)),
        **more,
    }


def story(folder: Any) -> Any:
    """The points of a journal, by name and step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        (name, line["step"]): float(value)
        for line in lines
        if line["kind"] == "metrics"
        for name, value in line["values"].items()
        if name not in TIMES
    }


def alike(ours: Any, theirs: Any) -> None:
    """Two directories hold the same journal and the same checkpoints."""
    assert story(ours) == pytest.approx(story(theirs), rel=1e-7, nan_ok=True)
    names = {path.name for path in (theirs / "checkpoints").iterdir()}
    assert {path.name for path in (ours / "checkpoints").iterdir()} == names
    for name in names - {"last.json"}:
        mine, its = (checkpoint.load(folder / "checkpoints" / name) for folder in (ours, theirs))
        assert mine["iter"] == its["iter"], name
        assert mine["hooks"].keys() == its["hooks"].keys()
        for key in ("nan_guard", "ema", "early_stop", "checkpoint"):
            close(mine["hooks"][key], its["hooks"][key])
        for part in ("model", "eval_model"):
            assert (part in mine) is (part in its)
            for key, tensor in its.get(part, {}).items():
                torch.testing.assert_close(mine[part][key], tensor, rtol=1e-7, atol=1e-9)


def close(mine: Any, its: Any) -> None:
    if isinstance(its, dict):
        assert mine.keys() == its.keys()
        for key in its:
            close(mine[key], its[key])
    else:
        assert mine == (pytest.approx(its) if isinstance(its, float) else its)


@pytest.mark.parametrize("kind", AVERAGES)
def test_members_follow_their_solo_runs_and_resume_each_other(tmp_path: Path, kind: Any) -> None:
    average, leave = AVERAGES[kind], {"leave": {"_target_": LeaveAt, "epoch": 5}}
    for member in range(3):
        Runner.from_cfg(config(member, tmp_path / "solo", average, hook=leave)).train()
    FusedRunner([config(member, tmp_path / "fused", average, hook=leave) for member in range(3)]).train()
    stop = leave | {"interrupt": {"_target_": Interrupt, "at": 15}}
    FusedRunner([config(member, tmp_path / "first fused", average, hook=stop) for member in range(3)]).train()
    for member in range(3):
        Runner.from_cfg(config(member, tmp_path / "first solo", average, hook=stop)).train()
        Runner.from_cfg(config(member, tmp_path / "first fused", average, hook=leave, resume=True)).train()
    FusedRunner(
        [config(member, tmp_path / "first solo", average, hook=leave, resume=True) for member in range(3)]
    ).train()
    ends = set()
    for member in range(3):
        alike(tmp_path / "fused" / str(member), tmp_path / "solo" / str(member))
        for way in ("first fused", "first solo"):  # they have one checkpoint more
            (tmp_path / way / str(member) / "checkpoints" / "iter_00000015.pt").unlink()
            note = tmp_path / way / str(member) / "checkpoints" / "last.json"
            note.write_text(note.read_text().replace('"iter_00000015.pt",', ""))
            alike(tmp_path / way / str(member), tmp_path / "solo" / str(member))
        ends.add(max(step for _, step in story(tmp_path / "solo" / str(member))))
        published = sorted((tmp_path / "fused" / str(member) / "published").iterdir())
        assert [file.name[:-12] for file in published] == ["best", "best_accuracy", "best_loss"]
        for file in published:
            assert hashlib.sha256(file.read_bytes()).hexdigest()[:8] == file.stem[-8:]
    assert len(ends) > 1, "nobody left before the others"
    raw = {name for name, _ in story(tmp_path / "solo" / "0")} & {"val_raw/loss", "val_raw/accuracy"}
    assert bool(raw) is (average.get("evaluate") == "both")


def test_each_member_skips_its_own_steps(tmp_path: Path) -> None:
    """One of them has a learning rate at which its second gradient is no number."""
    rates = [0.05, 1e300, 0.01]
    made = [
        config(m, tmp_path / "fused", {}, lr=rate, threshold=0.6, clip_grad_norm=None) for m, rate in enumerate(rates)
    ]
    FusedRunner(made).train()
    for member, rate in enumerate(rates):
        Runner.from_cfg(config(member, tmp_path / "solo", {}, lr=rate, threshold=0.6, clip_grad_norm=None)).train()
        ours, theirs = story(tmp_path / "fused" / str(member)), story(tmp_path / "solo" / str(member))
        skipped = [value for (name, _), value in sorted(ours.items()) if name == "train/skipped"]
        assert skipped == [value for (name, _), value in sorted(theirs.items()) if name == "train/skipped"]
        assert (max(skipped) > 0) is (rate == 1e300)
        losses = {key: value for key, value in ours.items() if key[0] == "val/loss"}
        assert losses == pytest.approx({key: theirs[key] for key in losses}, rel=1e-7, nan_ok=True)
        if rate < 1:
            assert all(math.isfinite(value) for value in losses.values())
