"""Small trainings for the lanes of stacks: configs, models, optimizers, schedules, data; members and single runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from trainyard.data import Data
from trainyard.data.tensor_loader import TensorLoader
from trainyard.hooks import Hook
from trainyard.runner import Runner

Config = dict[str, Any]

BATCHES = 5
"""In an epoch of `Points`."""

MODELS: dict[str, Config] = {
    "mlp": {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [4]},
    "batch norm": {
        "_target_": "trainyard.models.MLP",
        "in_features": 2,
        "num_classes": 2,
        "hidden": [4],
        "batch_norm": True,
    },
}
OPTIMS: dict[str, Config] = {
    "sgd": {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True, "fused": True},
    "adam": {"_target_": "torch.optim.Adam", "lr": 2e-3, "fused": True},
    "adamw": {"_target_": "torch.optim.AdamW", "lr": 2e-3, "weight_decay": 0.05, "amsgrad": True},
    "rmsprop": {"_target_": "torch.optim.RMSprop", "lr": 1e-3, "centered": True, "momentum": 0.5},
    "adagrad": {"_target_": "torch.optim.Adagrad", "lr": 1e-2, "lr_decay": 1e-3},
    "nadam": {"_target_": "torch.optim.NAdam", "lr": 2e-3},
    "radam": {"_target_": "torch.optim.RAdam", "lr": 2e-3, "weight_decay": 0.01},
    "adamax": {"_target_": "torch.optim.Adamax", "lr": 2e-3},
    "lion": {"_target_": "trainyard.optim.Lion", "lr": 3e-4, "weight_decay": 0.1},
}
SCHEDULES: dict[str, Any] = {
    "constant": None,
    "cosine": {
        "_target_": "trainyard.schedules.Schedule",
        "scheduler": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "_partial_": True, "T_max": "auto"},
        "by": "iter",
    },
    "onecycle": {
        "_target_": "trainyard.schedules.Schedule",
        "scheduler": {
            "_target_": "torch.optim.lr_scheduler.OneCycleLR",
            "_partial_": True,
            "max_lr": "auto",
            "total_steps": "auto",
            "cycle_momentum": "auto",
        },
        "by": "iter",
    },
    "by epoch": {
        "_target_": "trainyard.schedules.Schedule",
        "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 2, "gamma": 0.5},
        "warmup": 1,
        "by": "epoch",
    },
    "plateau": {"_target_": "trainyard.schedules.Plateau", "patience": 0, "factor": 0.5},
}


class Points(Data):
    """Two classes of points in the plane, in five batches of which the last is smaller."""

    def __init__(self, samples: int = 27) -> None:
        self.spec = {"num_classes": 2, "in_features": 2}
        self.splits = ("train", "val")
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(samples, 2, generator=generator)
        self.y = (self.x.norm(dim=1) > 1.1).long()

    def loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        return TensorLoader((self.x, self.y), 6, shuffle=split == "train", seed=seed, device=device)


def config(seed: int, epochs: int, folder: Path | None = None, **more: Any) -> Config:
    return {
        "model": {
            "_target_": "trainyard.models.MLP",
            "in_features": 2,
            "num_classes": 2,
            "hidden": [4],
            "dropout": 0.2,
        },
        "data": {"_target_": Points},
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01 * (seed + 1)},
        "schedule": SCHEDULES["cosine"],
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": epochs},
        "hook": {
            "param_schedule": {"_target_": "trainyard.hooks.ParamSchedule"},
            "logger": {"_target_": "trainyard.hooks.Logger", "interval": 4},
            "ema": {"_target_": "trainyard.hooks.EMA", "decay": 0.8 + 0.02 * seed},
            "checkpoint": {"_target_": "trainyard.hooks.Checkpoint", "interval": 2},
            "nan_guard": {"_target_": "trainyard.hooks.NaNGuard", "interval": 1},
        },
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "objective": "val/loss",
        "device": "cpu",
        "seed": seed,
        "work_dir": None if folder is None else str(folder / str(seed)),
    } | more


def follows(member: Any, solo: Runner, bound: float = 1e-10) -> None:
    """The member ends where its single run does, with its weights, its average and its results."""
    assert (member.iter, member.epoch) == (solo.iter, solo.epoch)
    for own, theirs in ((member.model, solo.model), (member.eval_model, solo.eval_model)):
        for (name, tensor), expected in zip(own.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(tensor, expected, rtol=bound, atol=bound, equal_nan=True, msg=name)
    values = {key: value for key, value in member.metrics.items() if "time" not in key}
    expected = {key: value for key, value in solo.members[0].metrics.items() if "time" not in key}
    assert values == pytest.approx(expected, rel=1e-9, nan_ok=True)


def solo(values: Config) -> Runner:
    runner = Runner.from_cfg(values)
    runner.train()
    return runner


class Poison(Hook):
    """Spoils a weight of members of some seeds after so many of their iterations."""

    stackable = True
    own_places = True

    def __init__(self, at: Mapping[int, int]) -> None:
        self.at = {int(seed): iteration for seed, iteration in at.items()}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        for member in runner.members:
            if not member.vacant and self.at.get(member.seed) == member.iter:
                with torch.no_grad():
                    next(iter(member.model.parameters())).view(-1)[0] = math.nan
