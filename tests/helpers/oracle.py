"""The same small training in MMEngine and here: what each did, to be compared.

A module that imports this one is skipped where MMEngine is not installed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from trainyard.hooks import Hook, ParamSchedule
from trainyard.models import BaseModel
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

pytest.importorskip("mmengine", reason="MMEngine is not installed: bash scripts/test_openmmlab.sh")
import mmengine.model
import mmengine.runner
from mmengine.dataset import InfiniteSampler
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook as TheirHook

BATCHES, SIZE = 3, 4
"""Batches in an epoch, and samples in a batch."""

_numbers = count()  # MMEngine keeps its instances by the name of the experiment


@dataclass
class Found:
    """What a training did.

    Attributes:
        rates: for each iteration the learning rate of each parameter group.
        validated: the epochs (iterations, in an iteration loop) after which it validated.
        evaluated: at each validation, the tensors of the model that was evaluated.
        weights: the tensors of the model at the end.
        iterations: how many it took.
        best: the epoch (iteration) of the best checkpoint; None without one.
        files: names of its checkpoints, without leading zeros and without the best.
    """

    rates: list[list[float]] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    evaluated: list[Tensor] = field(default_factory=list)
    weights: Tensor = field(default_factory=lambda: torch.zeros(0))
    iterations: int = 0
    best: int | None = None
    files: set[str] = field(default_factory=set)


def net() -> nn.Module:
    """A net of 2 layers with a BatchNorm, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 1))


def samples(batches: int = BATCHES) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(batches * SIZE, 3, generator=generator)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True).tanh())


def tensors(model: nn.Module) -> Tensor:
    """All parameters and buffers of floating-point numbers, flat."""
    held = [tensor for tensor in copy.deepcopy(model).state_dict().values() if tensor.is_floating_point()]
    return torch.cat([tensor.detach().flatten() for tensor in held])


def value_of(score: Sequence[float], found: Found) -> float:
    """Return the value of the present validation; without values, its number."""
    number = max(len(found.validated) - 1, 0)  # before the first: a check of the parts
    return score[number] if score else float(number)


class TheirModel(mmengine.model.BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, inputs: Tensor, targets: Tensor, mode: str = "tensor") -> Any:
        outputs = self.net(inputs)
        return {"loss": mse_loss(outputs, targets)} if mode == "loss" else outputs


class OurModel(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, inputs: Tensor, targets: Tensor, mode: str = "tensor") -> Any:
        outputs = self.net(inputs)
        return {"loss": mse_loss(outputs, targets)} if mode == "loss" else outputs


class TheirScore(BaseMetric):
    """Gives the values of a list, one at each validation."""

    default_prefix = ""

    def __init__(self, values: Sequence[float], found: Found) -> None:
        super().__init__()
        self.values, self.found = values, found

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: Any) -> dict[str, float]:
        return {"score": value_of(self.values, self.found)}


class OurScore:
    def __init__(self, values: Sequence[float], found: Found) -> None:
        self.values, self.found = values, found

    def process(self, data_batch: Any, data_samples: Any) -> None: ...

    def compute_metrics(self, results: Any) -> dict[str, float]:
        return {"score": value_of(self.values, self.found)}


class TheirProbe(TheirHook):
    priority = "LOWEST"

    def __init__(self, found: Found, by_epoch: bool) -> None:
        self.found, self.by_epoch = found, by_epoch

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.found.rates.append(list(runner.optim_wrapper.get_lr()["lr"]))

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == 0:
            self.found.validated.append(runner.epoch if self.by_epoch else runner.iter)
            self.found.evaluated.append(tensors(runner.model.net))


class OurProbe(Hook):
    priority = "LOWEST"

    def __init__(self, found: Found, by_epoch: bool) -> None:
        self.found, self.by_epoch = found, by_epoch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        self.found.rates.append([group["lr"] for group in runner.optimizer.param_groups])

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        if batch_idx == 0 and runner.training:
            self.found.validated.append(runner.epoch if self.by_epoch else runner.iter)
            self.found.evaluated.append(tensors(runner.eval_model.net))


def theirs(
    directory: Path,
    *,
    length: int,
    by_epoch: bool = True,
    batches: int = BATCHES,
    optimizer: Mapping[str, Any] | None = None,
    wrapper: Mapping[str, Any] | None = None,
    schedulers: Sequence[Mapping[str, Any]] = (),
    train_cfg: Mapping[str, Any] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    hooks: Sequence[Any] = (),
    score: Sequence[float] | None = None,
) -> Found:
    """Train in MMEngine; the arguments are parts of its config."""
    found = Found()
    data = samples(batches)
    order = None if by_epoch else InfiniteSampler(data, shuffle=False)
    saving = None if checkpoint is None else {"type": "CheckpointHook", "by_epoch": by_epoch, **checkpoint}
    hold = dict.fromkeys(("logger", "timer", "sampler_seed", "runtime_info")) | {"checkpoint": saving}
    runner = mmengine.runner.Runner(
        TheirModel(),
        str(directory),
        train_dataloader=DataLoader(data, SIZE, sampler=order),
        val_dataloader=DataLoader(data, SIZE),
        train_cfg={"by_epoch": by_epoch, ("max_epochs" if by_epoch else "max_iters"): length, **(train_cfg or {})},
        val_cfg={},
        val_evaluator=[TheirScore(score or (), found)],
        optim_wrapper={"optimizer": optimizer or {"type": "SGD", "lr": 0.1}, **(wrapper or {})},
        param_scheduler=[dict(scheduler) for scheduler in schedulers] or None,
        default_hooks=hold,
        custom_hooks=[*hooks, TheirProbe(found, by_epoch)],
        experiment_name=f"oracle{next(_numbers)}",
        log_level="ERROR",
    )
    runner.train()
    found.weights, found.iterations = tensors(runner.model.net), runner.iter
    found.files = {path.stem for path in directory.glob("*.pth")}
    best = [name for name in found.files if name.startswith("best_")]
    found.best = int(best[0].rpartition("_")[2]) if best else None
    found.files -= set(best)
    return found


def ours(
    directory: Path,
    *,
    length: int,
    by_epoch: bool = True,
    batches: int = BATCHES,
    optim: Any = None,
    loop: Mapping[str, Any] | None = None,
    hooks: Mapping[str, Any] | None = None,
    score: Sequence[float] | None = None,
    **settings: Any,
) -> Found:
    """Train here; the arguments are those of the Runner and of its loop."""
    found = Found()
    data = samples(batches)
    make: Any = EpochBasedTrainLoop if by_epoch else IterBasedTrainLoop
    runner = Runner(
        OurModel(),
        {"train": DataLoader(data, SIZE), "val": DataLoader(data, SIZE)},
        optim or partial(torch.optim.SGD, lr=0.1),
        hooks={"param_schedule": ParamSchedule(), **(hooks or {}), "probe": OurProbe(found, by_epoch)},
        metrics={"score": OurScore(score or (), found)},
        loop=make(length, **(loop or {})),
        work_dir=directory,
        device="cpu",
        **{"objective": "val/score", "direction": "maximize", **settings},
    )
    runner.train()
    found.weights, found.iterations = tensors(runner.model.net), runner.iter
    found.files = {path.stem for path in directory.glob("checkpoints/*.pt")}
    if "best" in found.files and (best := runner.members[0].best) is not None:
        found.best = best.epoch if by_epoch else best.iter
    found.files = {numbered(name) for name in found.files - {"best"}}
    return found


def numbered(name: str) -> str:
    """Return the name of a checkpoint without leading zeros, as MMEngine writes it."""
    unit, _, number = name.partition("_")
    return f"{unit}_{int(number)}"
