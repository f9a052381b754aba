"""A member of a fused group follows its own solo run: weights, metrics, journals, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupting import InterruptAt
from omegaconf import OmegaConf
from torch import Tensor

from trainyard.data import Data
from trainyard.data.tensor_loader import TensorLoader
from trainyard.fused.runner import FusedRunner
from trainyard.runner import Runner, checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

STEPS, BATCH = 100, 8
Config = dict[str, Any]


class Pictures(Data):
    """Blobs of four kinds on 8 x 8 pictures, in the precision that is set."""

    def __init__(self) -> None:
        self.spec = {"num_classes": 4, "in_channels": 1, "in_features": 64}
        self.splits = ("train", "val")
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(44) % 4
        noise = torch.randn(44, 1, 8, 8, generator=generator, dtype=torch.float64)
        places = torch.zeros(44, 1, 8, 8, dtype=torch.float64)
        for index, kind in enumerate(self.y.tolist()):
            places[index, 0, 4 * (kind // 2) : 4 * (kind // 2) + 4, 4 * (kind % 2) : 4 * (kind % 2) + 4] = 1.0
        self.x = (places + 0.7 * noise).to(torch.get_default_dtype())

    def loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        return TensorLoader((self.x, self.y), BATCH, shuffle=split == "train", seed=seed, device=device)


class Words(Data):
    """Sequences of eight tokens, each following from the one before with some noise."""

    def __init__(self) -> None:
        self.spec = {"vocab_size": 11, "context_length": 8}
        self.splits = ("train", "val")
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(11, (40, 9), generator=generator)
        for place in range(1, 9):
            tokens[:, place] = torch.where(
                torch.rand(40, generator=generator) < 0.7, (3 * tokens[:, place - 1] + 1) % 11, tokens[:, place]
            )
        self.tokens = tokens

    def loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        tensors = (self.tokens[:, :-1].contiguous(), self.tokens[:, 1:].contiguous())
        return TensorLoader(tensors, BATCH, shuffle=split == "train", seed=seed, device=device)


MODELS: dict[str, Config] = {
    "mlp": {"_target_": "trainyard.models.MLP", "in_features": 64, "num_classes": 4, "hidden": [12]},
    "cnn": {"_target_": "trainyard.models.CNN", "in_channels": 1, "num_classes": 4, "channels": [4, 6]},
    "transformer": {
        "_target_": "trainyard.models.Transformer",
        "vocab_size": 11,
        "context_length": 8,
        "dim": 8,
        "layers": 1,
        "heads": 2,
        "dropout": 0.0,
    },
}

OPTIMS: dict[str, Config] = {
    "sgd": {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9, "nesterov": True, "fused": True},
    "adam": {"_target_": "torch.optim.Adam", "lr": 2e-3, "fused": True},
    "adamw": {"_target_": "torch.optim.AdamW", "lr": 2e-3, "weight_decay": 0.05, "amsgrad": True, "fused": True},
    "rmsprop": {"_target_": "torch.optim.RMSprop", "lr": 1e-3, "centered": True, "momentum": 0.5},
    "adagrad": {"_target_": "torch.optim.Adagrad", "lr": 1e-2, "lr_decay": 1e-3, "fused": True},
    "nadam": {"_target_": "torch.optim.NAdam", "lr": 2e-3},
    "radam": {"_target_": "torch.optim.RAdam", "lr": 2e-3, "weight_decay": 0.01},
    "adamax": {"_target_": "torch.optim.Adamax", "lr": 2e-3},
    "lion": {"_target_": "trainyard.optim.Lion", "lr": 3e-4, "weight_decay": 0.1},
}
SCHEDULES = ("constant", "cosine", "onecycle")
OPTIONS = Path(__file__).parents[2] / "conf" / "schedule"


def config(model: str, optim: str, schedule: str, member: int, work_dir: Path | None = None, **more: Any) -> Config:
    text = model == "transformer"
    base = dict(OPTIMS[optim])
    made: Config = {
        "model": MODELS[model],
        "data": {"_target_": Words if text else Pictures},
        "optim": base | {"_partial_": True, "lr": base["lr"] * (1 + member / 2)},
        "schedule": OmegaConf.to_container(OmegaConf.load(OPTIONS / f"{schedule}.yaml")),
        "loop": {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": STEPS, "val_interval": 50},
        "hook": {
            "logger": {"_target_": "trainyard.hooks.Logger"},
            "param_schedule": {"_target_": "trainyard.hooks.ParamSchedule"},
        },
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "objective": "val/loss",
        "device": "cpu",
        "seed": 3 * member,
        "work_dir": None if work_dir is None else str(work_dir / str(member)),
    }
    return made | more


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max().clamp_min(1e-12))


def compare(fused: FusedRunner, solos: list[Runner], bound: float) -> None:
    for member, (own, solo) in enumerate(zip(fused.all_members, solos, strict=True)):
        theirs = dict(solo.model.state_dict())
        for name, tensor in own.model.state_dict().items():
            assert difference(tensor.double(), theirs[name].double()) < bound, (member, name)
        timed = ("train/time", "train/data_time")
        values = {key: value for key, value in own.metrics.items() if key not in timed}
        expected = {key: value for key, value in solo.members[0].metrics.items() if key not in timed}
        assert values == pytest.approx(expected, rel=max(bound, 1e-9), abs=1e-9)


def solo(values: Config) -> Runner:
    runner = Runner.from_cfg(values)
    runner.train()
    return runner


# A square in which each pair of two stands once: every optimizer with every model and every schedule, and these two.
SQUARE = [
    (optim, model, SCHEDULES[(row + column) % len(SCHEDULES)])
    for row, optim in enumerate(OPTIMS)
    for column, model in enumerate(MODELS)
]


@pytest.mark.parametrize(("optim", "model", "schedule"), SQUARE)
def test_members_follow_their_solo_runs(optim: str, model: str, schedule: str, double: None) -> None:
    configs = [config(model, optim, schedule, member) for member in range(3)]
    fused = FusedRunner(configs)
    fused.train()
    compare(fused, [solo(values) for values in configs], 1e-10)


@pytest.mark.parametrize("optim", OPTIMS)
def test_members_follow_in_float32(optim: str) -> None:
    """To the rounding that 100 steps gather; Lion's steps have the size of a sign, which a rounding can turn."""
    configs = [config("mlp", optim, "cosine", member) for member in range(3)]
    fused = FusedRunner(configs)
    fused.train()
    compare(fused, [solo(values) for values in configs], 1e-2 if optim == "lion" else 1e-4)


ROUND = {
    "checkpoint": {"_target_": "trainyard.hooks.Checkpoint", "interval": 20, "max_keep": None},
    "logger": {"_target_": "trainyard.hooks.Logger", "interval": 7},
    "param_schedule": {"_target_": "trainyard.hooks.ParamSchedule"},
    "ema": {"_target_": "trainyard.hooks.EMA", "decay": 0.9},
}


def whole(member: int, folder: Path, **more: Any) -> Config:
    """A config in which everything takes part: EMA, clipping, accumulation, a schedule, checkpoints."""
    hooks = ROUND | {"ema": ROUND["ema"] | {"decay": 0.9 - 0.1 * member}}
    return config("cnn", "adam", "onecycle", member, folder) | {
        "hook": hooks,
        "clip_grad_norm": 0.3 + 0.2 * member,
        "accumulate": 3,
        **more,
    }


def journal(folder: Path) -> list[dict[str, Any]]:
    """The points of a journal, less the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("time", "t")} for line in lines]


def same_state(first: Any, second: Any, path: str = "") -> None:
    """Two checkpoints are alike: the same keys and kinds, numbers to rounding."""
    if isinstance(second, Tensor):
        assert (first.shape, first.dtype) == (second.shape, second.dtype), path
        if second.numel():
            scale = second.double().abs().max().clamp_min(1e-9)
            assert (first.double() - second.double()).abs().max() <= 1e-8 * scale + 1e-12, path
    elif isinstance(second, dict):
        assert first.keys() == second.keys(), path
        for key in second:
            if key not in ("random", "train/time", "train/data_time"):
                same_state(first[key], second[key], f"{path}.{key}")
    elif isinstance(second, list | tuple):
        assert len(first) == len(second), path
        for index, entry in enumerate(second):
            same_state(first[index], entry, f"{path}[{index}]")
    elif isinstance(second, float):
        assert first == pytest.approx(second, rel=1e-8, abs=1e-10), path
    else:
        assert first == second, path


def test_a_member_writes_what_it_would_have_written_alone(tmp_path: Path, double: None) -> None:
    fused = FusedRunner([whole(member, tmp_path / "fused") for member in range(3)])
    fused.train()
    for member in range(3):
        solo(whole(member, tmp_path / "solo"))
        ours, theirs = tmp_path / "fused" / str(member), tmp_path / "solo" / str(member)
        names = sorted(path.name for path in (theirs / "checkpoints").iterdir())
        assert sorted(path.name for path in (ours / "checkpoints").iterdir()) == names
        assert len(names) > 3
        for name in names:
            if name.endswith(".pt"):
                same_state(checkpoint.load(ours / "checkpoints" / name), checkpoint.load(theirs / "checkpoints" / name))
        same_state(journal(ours), journal(theirs))


def test_each_kind_resumes_the_other(tmp_path: Path, double: None) -> None:
    """Interrupted in the middle of a gathering of gradients, between two points of the journal."""

    undisturbed = [solo(whole(member, tmp_path / "undisturbed")) for member in range(3)]
    hooks = [
        whole(member, tmp_path)["hook"] | {"interrupt": {"_target_": InterruptAt, "iteration": 52}}
        for member in range(3)
    ]

    for member in range(3):
        solo(whole(member, tmp_path / "solo first", hook=hooks[member]))
    fused = FusedRunner([whole(member, tmp_path / "solo first", resume=True) for member in range(3)])
    fused.train()
    assert fused.iter == STEPS
    compare(fused, undisturbed, 1e-8)

    FusedRunner([whole(member, tmp_path / "fused first", hook=hooks[member]) for member in range(3)]).train()
    for member in range(3):
        resumed = Runner.from_cfg(whole(member, tmp_path / "fused first", resume=True))
        resumed.prepare()
        assert resumed.iter == 52
        resumed.train()
        theirs = undisturbed[member].model.state_dict()
        for name, tensor in resumed.model.state_dict().items():
            assert difference(tensor.double(), theirs[name].double()) < 1e-8, name
        assert resumed.members[0].metrics["val/loss"] == pytest.approx(
            undisturbed[member].members[0].metrics["val/loss"]
        )


@settings(max_examples=12)
@given(data=st.data())
def test_any_group_follows_its_solo_runs(data: st.DataObject, double: None) -> None:
    """Sweeps drawn at random from what may differ, and from what the members share."""
    model = data.draw(st.sampled_from(list(MODELS)))
    optim = data.draw(st.sampled_from(list(OPTIMS)))
    schedule = data.draw(st.sampled_from(list(SCHEDULES)))
    size = data.draw(st.integers(2, 4))
    clips = data.draw(st.booleans())
    shared: Config = {
        "accumulate": data.draw(st.integers(1, 3)),
        "loop": {
            "_target_": "trainyard.runner.IterBasedTrainLoop",
            "max_iters": data.draw(st.integers(1, 25)),
            "val_interval": 7,
        },
    }
    configs = []
    for member in range(size):
        values = config(model, optim, schedule, member) | shared
        values["seed"] = data.draw(st.integers(0, 2))
        values["optim"] = values["optim"] | {"lr": data.draw(st.sampled_from([1e-4, 1e-3, 3e-3]))}
        if clips:
            values["clip_grad_norm"] = data.draw(st.sampled_from([0.1, 1.0, 100.0]))
        configs.append(values)
    fused = FusedRunner(configs)
    fused.train()
    compare(fused, [solo(values) for values in configs], 1e-9)
