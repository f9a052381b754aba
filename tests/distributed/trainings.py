"""Trainings of one rank, or of one process alone: what test_equivalence.py starts and compares.

python trainings.py <single|ddp|fsdp> <whole|resumed> <folder>
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from trainyard.data import Data
from trainyard.data.tensor_loader import TensorLoader
from trainyard.distributed.shares import whole
from trainyard.hooks import Hook
from trainyard.models import BaseModel
from trainyard.runner import Runner

BATCH, SAMPLES, EPOCHS = 10, 65, 8  # 7 batches an epoch, the last of 5: one rank has 3 of it, the other 2
ENDED = 50  # the first batch of a group of four: its gradients wait for the others
KINDS = ("single", "ddp", "fsdp")


class Blobs(Data):
    """Four kinds of points in 16 dimensions."""

    def __init__(self) -> None:
        self.spec = {"num_classes": 4, "in_features": 16}
        self.splits = ("train", "val")
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(SAMPLES) % 4
        centres = torch.randn(4, 16, generator=generator, dtype=torch.float64)
        noise = torch.randn(SAMPLES, 16, generator=generator, dtype=torch.float64)
        self.x = (centres[self.y] + noise).to(torch.get_default_dtype())

    def loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        return TensorLoader((self.x, self.y), BATCH, shuffle=split == "train", seed=seed, device=device)


class Dropping(BaseModel):
    """With dropout, whose masks no other rank draws."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(16, 24), torch.nn.ReLU(), torch.nn.Dropout(0.3), torch.nn.Linear(24, 4)
        )

    def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
        output = self.net(x)
        return {"loss": torch.nn.functional.cross_entropy(output, y)} if mode == "loss" else output


class Items(BaseModel):
    """Ignores one kind of points: a rank, and a rank's share of a batch, may have none of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.ReLU(), torch.nn.Linear(24, 4))

    def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
        output = self.net(x)
        if mode != "loss":
            return output
        return {
            "loss": torch.nn.functional.cross_entropy(output, y, ignore_index=0),
            "num_items": (y != 0).sum(),
        }


class EndAt(Hook):
    """Asks one rank alone to end the run, after so many iterations."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.iteration and runner.strategy.rank == runner.strategy.world_size - 1:
            runner.interrupt()


MLP = {"_target_": "trainyard.models.MLP", "in_features": 16, "num_classes": 4, "hidden": [24]}
ADAM = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 3e-3, "fused": True}
SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.05, "momentum": 0.9}
EMA = {"_target_": "trainyard.hooks.EMA", "decay": 0.9}
CHECKPOINT = {"_target_": "trainyard.hooks.Checkpoint", "max_keep": None}

CASES: dict[str, dict[str, Any]] = {
    "adamw": {"model": MLP, "optim": ADAM, "clip_grad_norm": 0.5},
    "accumulated": {"model": MLP, "optim": SGD, "accumulate": 4, "clip_grad_norm": 0.5, "ema": EMA},
    "items": {"model": {"_target_": Items}, "optim": ADAM, "accumulate": 4, "clip_grad_value": 0.01, "ema": EMA},
}
"""What follows one process; each ends half-way in another training too, in the middle of a group of batches."""

OWN_CASES: dict[str, dict[str, Any]] = CASES | {
    "dropout": {"model": {"_target_": Dropping}, "optim": ADAM, "accumulate": 2},
}
"""What follows itself, killed and resumed."""


def loop(epochs: int) -> dict[str, Any]:
    return {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": epochs, "val_interval": 4}


def config(case: dict[str, Any], folder: Path | None, strategy: dict[str, Any], **more: Any) -> dict[str, Any]:
    hooks = {
        "logger": {"_target_": "trainyard.hooks.Logger", "interval": 5},
        "param_schedule": {"_target_": "trainyard.hooks.ParamSchedule"},
        "nan_guard": {"_target_": "trainyard.hooks.NaNGuard"},
    }
    if "ema" in case:
        hooks["ema"] = case["ema"]
    if folder is not None:
        hooks["checkpoint"] = CHECKPOINT
    made = {
        "model": case["model"],
        "data": {"_target_": Blobs},
        "optim": case["optim"],
        "schedule": {
            "_target_": "trainyard.schedules.Schedule",
            "scheduler": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "_partial_": True, "T_max": "auto"},
            "by": "iter",
        },
        "loop": loop(EPOCHS),
        "hook": hooks | more.pop("hook", {}),
        "metric": {
            "loss": {"_target_": "trainyard.metrics.CrossEntropy"},
            "accuracy": {"_target_": "trainyard.metrics.Accuracy"},
        },
        "device": "cpu",
        "seed": 3,
        "strategy": strategy,
        "work_dir": None if folder is None else str(folder),
    }
    settings = {key: value for key, value in case.items() if key not in ("model", "optim", "ema")}
    return made | settings | more


def options(strategy: str) -> dict[str, Any]:
    targets = {"single": "Strategy", "ddp": "ddp.DDP", "fsdp": "fsdp.FSDP"}
    made: dict[str, Any] = {"_target_": f"trainyard.distributed.{targets[strategy]}"}
    return made | ({"wrap": ["Linear"]} if strategy == "fsdp" else {})


def state(runner: Runner) -> dict[str, Any]:
    """The weights and their average, whole, and the latest numbers."""
    return {
        "model": {name: whole(value).clone() for name, value in runner.model.state_dict().items()},
        "eval_model": {name: whole(value).clone() for name, value in runner.eval_model.state_dict().items()},
        "metrics": dict(runner.members[0].metrics),
        "iter": runner.iter,
    }


def main(strategy: str, part: str, folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, case in OWN_CASES.items():
        if part == "whole":
            runner = Runner.from_cfg(config(case, folder / strategy / "whole" / name, options(strategy)))
            runner.train()
            found[name] = state(runner)
            half = folder / strategy / "half" / name
            runner = Runner.from_cfg(
                config(case, half, options(strategy), hook={"end": {"_target_": EndAt, "iteration": ENDED}})
            )
            runner.train()
            found[f"{name}, half"] = state(runner)
        else:
            for origin in KINDS if name in CASES else (strategy,):
                (newest,) = json.loads((folder / origin / "half" / name / "checkpoints/last.json").read_text())[
                    "history"
                ][-1:]
                resume = folder / origin / "half" / name / "checkpoints" / newest
                runner = Runner.from_cfg(config(case, None, options(strategy), resume=str(resume)))
                runner.train()
                found[f"{name} of {origin}"] = state(runner)
    if runner.strategy.is_main:
        torch.save(found, folder / f"{strategy}_{part}.pt")
    runner.strategy.end()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
