"""The step and the checkpoint before the training change no bit of it, and leave nothing behind."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from streams import CLASSES, FEATURES, Buckets, StatefulLoader, StatefulStream, Stream, sample
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset

from trainyard.errors import ConfigError, TrainyardError
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import EMA, Checkpoint, Hook, Logger, ParamSchedule
from trainyard.models import MLP, BaseModel
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner, checkpoint
from trainyard.schedules import Schedule
from trainyard.track import read

SAMPLES = 22


class Samples(Dataset[Any]):
    """Samples with noise from all generators, as transforms draw it."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        return sample(index, 0.1 * float(torch.randn(())) + 0.1 * np.random.normal() + random.gauss(0, 0.1))


class Once(IterableDataset[Any]):
    """A stream that can be read once: what was taken from it is gone."""

    def __init__(self, noisy: bool) -> None:
        self.left = iter(Stream(SAMPLES * 3, noisy=noisy))

    def __iter__(self) -> Iterator[Any]:
        return self.left


class Net(BaseModel):
    """A network that remembers in each of the ways that models do."""

    def __init__(self, dropout: float, norm: bool, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        layers: list[nn.Module] = [nn.Linear(FEATURES, 6)]
        layers += [nn.BatchNorm1d(6)] if norm else []
        layers += [nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, CLASSES)]
        self.layers = nn.Sequential(*layers)
        if tied:
            nn.utils.parametrizations.spectral_norm(self.layers[0])
        self.steps = 0
        self.seen: list[int] = []
        self.generator = torch.Generator().manual_seed(5)
        self.noise = torch.zeros(1)
        self.unsaved: Tensor
        self.register_buffer("unsaved", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor, y: Tensor, mode: str) -> Any:
        if mode != "loss":
            return self.layers(x)
        self.steps += 1
        self.seen.append(self.steps)
        self.noise += torch.rand(1, generator=self.generator)
        self.unsaved = self.unsaved + 1
        loss = nn.functional.cross_entropy(self.layers(x), y) * (1 + 0.01 * self.steps + 0.1 * self.noise)
        return {"loss": (loss * self.unsaved * len(self.seen)).sum() / 100}


def loader(kind: str, noisy: bool) -> DataLoader[Any]:
    if kind in ("map", "workers"):
        return DataLoader(Samples(), 5, shuffle=True, num_workers=kind == "workers")
    if kind == "sampler":
        return DataLoader(Samples(), batch_sampler=Buckets([1 + i % 5 for i in range(SAMPLES)]))
    if kind == "stateful loader":
        return StatefulLoader(Stream(SAMPLES, noisy=noisy), 5)
    stream = {"once": lambda: Once(noisy), "stateful": lambda: StatefulStream(SAMPLES, noisy=noisy)}
    own: Any = stream.get(kind, lambda: Stream(SAMPLES, noisy=noisy))()
    return DataLoader(own, 5, num_workers=kind == "stream of workers")


def trained(folder: Path, plan: dict[str, Any], *, check: bool) -> Any:
    """What has to be equal to the bit: the checkpoints, the best weights, and the journal without times."""
    once = plan["kind"] == "once"
    hooks: dict[str, Any] = {
        "logger": Logger(interval=2),
        "schedule": ParamSchedule(),
        "checkpoint": Checkpoint(interval=1, max_keep=None),
    }
    if plan["ema"]:
        hooks["ema"] = EMA(0.9, update_buffers=True)
    by_iter = plan["by_iter"] or once
    runner = Runner(
        model=Net(plan["dropout"], plan["norm"], plan["spectral"]),
        data={"train": loader(plan["kind"], plan["noisy"]), "val": DataLoader(Samples(), 11)},
        optim={"_target_": plan["optim"], "_partial_": True, "lr": 0.01} | plan["options"],
        schedule=Schedule(partial(StepLR, step_size=1, gamma=0.5)),
        hooks=hooks,
        metrics={"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        loop=IterBasedTrainLoop(7, val_interval=3) if by_iter else EpochBasedTrainLoop(2),
        device="cpu",
        precision=plan["precision"],
        accumulate=plan["accumulate"],
        clip_grad_norm=1.0,
        work_dir=folder,
        sanity_check=check,
    )
    runner.train()
    return of_run(folder)


def of_run(folder: Path) -> Any:
    states = {}
    for file in sorted((folder / "checkpoints").glob("*.pt")):
        state = states[file.name] = checkpoint.load(file)
        state["member"]["metrics"] = {k: v for k, v in state["member"]["metrics"].items() if "time" not in k}
    points = [
        (record["step"], {k: v for k, v in record["values"].items() if "time" not in k})
        for record, _ in read(folder / "metrics.jsonl")
        if record["kind"] == "metrics"
    ]
    return states, points


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        # A norm of gradients in half precision may be NaN.
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=where)
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    else:
        assert a == b or (a != a and b != b), where  # NaN is NaN


OPTIMS: list[tuple[str, dict[str, Any]]] = [
    ("torch.optim.SGD", {"momentum": 0.9, "fused": True}),
    ("torch.optim.SGD", {"momentum": 0.9, "nesterov": True}),
    ("torch.optim.Adam", {"fused": True, "amsgrad": True}),
    ("torch.optim.AdamW", {}),
    ("torch.optim.RMSprop", {"centered": True, "momentum": 0.5}),
    ("torch.optim.Adagrad", {"fused": True}),
    ("torch.optim.NAdam", {}),
    ("trainyard.optim.Lion", {}),
]
KINDS = ("map", "sampler", "stream", "once", "stateful", "stateful loader")
PLAN = {
    "kind": "map",
    "noisy": False,
    "dropout": 0.3,
    "norm": True,
    "spectral": False,
    "ema": True,
    "by_iter": False,
    "optim": "torch.optim.AdamW",
    "options": {},
    "precision": "fp32",
    "accumulate": 1,
}


@settings(max_examples=12)
@given(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(KINDS),
            "noisy": st.booleans(),
            "dropout": st.sampled_from((0.0, 0.4)),
            "norm": st.booleans(),
            "spectral": st.booleans(),
            "ema": st.booleans(),
            "by_iter": st.booleans(),
            "precision": st.sampled_from(("fp32", "bf16", "fp16")),
            "accumulate": st.integers(1, 3),
        }
    ),
    st.sampled_from(OPTIMS),
)
@example(PLAN | {"kind": "workers"}, OPTIMS[2])
@example(PLAN | {"kind": "stream of workers", "noisy": True}, OPTIMS[0])
@example(PLAN | {"kind": "once", "noisy": True, "accumulate": 2}, OPTIMS[1])
@example(PLAN | {"kind": "stateful", "noisy": True, "accumulate": 3}, OPTIMS[3])
@example(PLAN | {"kind": "stateful loader", "noisy": True, "accumulate": 2}, OPTIMS[3])
def test_no_bit_changes(
    tmp_path_factory: pytest.TempPathFactory, plan: dict[str, Any], optim: tuple[str, dict[str, Any]]
) -> None:
    plan = plan | {"optim": optim[0], "options": optim[1]}
    outcomes = [trained(tmp_path_factory.mktemp("run"), plan, check=check) for check in (True, False)]
    assert outcomes[0][0], "there are checkpoints"
    assert_equal(*outcomes)


class Interrupts(Hook):
    """Ends the run after its first batch, in the midst of a group."""

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        runner.interrupt()


def test_a_run_that_is_interrupted_in_its_first_group_reads_no_batch_twice(tmp_path: Path) -> None:
    def run(folder: Path, **more: Any) -> Runner:
        data = {"train": DataLoader(StatefulStream(SAMPLES, noisy=True), 5)}
        torch.manual_seed(0)
        runner = Runner(
            MLP(in_features=FEATURES, hidden=[6], num_classes=CLASSES, dropout=0.3),
            data,
            {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
            hooks={"checkpoint": Checkpoint(), **more.pop("hooks", {})},
            loop=EpochBasedTrainLoop(1),
            accumulate=3,
            device="cpu",
            work_dir=folder,
            **more,
        )
        runner.train()
        return runner

    whole = run(tmp_path / "whole", sanity_check=False)
    run(tmp_path / "cut", hooks={"stop": Interrupts()})
    resumed = run(tmp_path / "cut", resume=True)
    assert_equal(resumed.model.state_dict(), whole.model.state_dict())


def test_no_bit_of_a_stack_changes(tmp_path: Path) -> None:
    def members(folder: Path, check: bool) -> Any:
        mlp = {"_target_": "trainyard.models.MLP", "hidden": [8], "dropout": 0.3, "batch_norm": True}
        config = {
            "model": mlp | {"in_features": "auto", "num_classes": "auto"},
            "data": {"_target_": "trainyard.data.Rings", "num_samples": 120, "batch_size": 16},
            "hook": {"checkpoint": Checkpoint(max_keep=None), "logger": Logger(interval=2), "ema": EMA(0.9)},
            "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
            "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 2},
            "accumulate": 2,
            "device": "cpu",
            "sanity_check": check,
        }
        kinds = {"_target_": "torch.optim.AdamW", "_partial_": True, "fused": True}
        configs = [
            config | {"seed": seed, "optim": kinds | {"lr": 0.01 * (seed + 1)}, "work_dir": folder / str(seed)}
            for seed in range(3)
        ]
        FusedRunner(configs).train()
        return [of_run(folder / str(seed)) for seed in range(3)]

    found = members(tmp_path / "checked", True), members(tmp_path / "unchecked", False)
    assert found[0][0][0], "there are checkpoints"
    assert_equal(*found)


@pytest.fixture
def made(parts: Any, tmp_path: Path) -> Any:
    return lambda **more: Runner(**(parts | {"work_dir": tmp_path / "run"} | more))


class Breaks(Hook):
    """Has a state that no checkpoint can hold."""

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        return {"at": {"place": [Path("here")]}}


class NeedsATraining(Hook):
    """Has a state as soon as there is a training."""

    def before_train(self, runner: Runner) -> None:
        self.begun = [runner.iter]

    def state_dict(self, member: int = 0) -> dict[str, Any]:
        return {"begun": self.begun}


class FailsInTraining(nn.Module):
    """Predicts, and cannot be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, y: Tensor, mode: str) -> Any:
        if mode == "loss":
            raise IndexError("only the training comes here")
        return self.layer(x)


def test_what_fails_fails_before_anything_is_written(made: Any, tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="only the training") as error:
        made(model=FailsInTraining()).train()
    assert error.value.__notes__ == [
        "The error occurred in the sanity check before the training; sanity_check=false skips this check."
    ]
    with pytest.raises(ConfigError) as refused:
        made(hooks={"checkpoint": Checkpoint(), "mine": Breaks()}).train()
    assert str(refused.value).startswith("hook.mine: ")
    assert "Expected tensors and plain values, because a checkpoint cannot contain other objects" in str(refused.value)
    assert "under 'at.place.0'" in str(refused.value)
    with pytest.raises(TrainyardError, match="'train' has no batches"):
        made(model=MLP(FEATURES, CLASSES, hidden=[4]), data={"train": DataLoader(Stream(0), 5)}, metrics={}).train()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_tried(made: Any, tmp_path: Path) -> None:
    made(hooks={"checkpoint": Checkpoint(), "mine": NeedsATraining()}).train()
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["checkpoints", "metrics.jsonl", "run.json"]
    with pytest.raises(IndexError):
        made(model=FailsInTraining(), sanity_check=False, work_dir=tmp_path / "off").train()
    assert (tmp_path / "off" / "metrics.jsonl").exists(), "without the check it fails in the training"


def test_one_step_and_one_batch_of_validation(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(kind: Any, name: str) -> None:
        own = getattr(kind, name)

        def method(*arguments: Any) -> Any:
            calls.append(name)
            return own(*arguments)

        monkeypatch.setattr(kind, name, method)

    for kind, name in ((MLP, "train_step"), (MLP, "val_step"), (torch.optim.Adam, "step")):
        counted(kind, name)
    made(accumulate=4).prepare()
    assert calls == ["val_step", "train_step", "step"]
