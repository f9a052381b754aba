"""What a resumed run takes from its config, and what it says of numbers that differ."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, ParamSchedule, RuntimeInfo
from trainyard.metrics import CrossEntropy
from trainyard.models import MLP
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from trainyard.runner.contract import extent
from trainyard.schedules import Schedule


def runner(
    folder: Path, epochs: int, *, batch: int = 4, schedule: Any = None, resume: Any = True, **given: Any
) -> Runner:
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(16, 2), torch.arange(16) % 2)
    numbers = {key: value for key, value in given.items() if key != "resume_override"}
    return Runner(
        MLP(2, 2, [4]),
        {"train": DataLoader(data, batch), "val": DataLoader(data, 16)},
        partial(torch.optim.AdamW, **{"lr": 0.1, **numbers}),
        schedule,
        hooks={"checkpoint": Checkpoint(), "schedule": ParamSchedule()},
        metrics={"loss": CrossEntropy()},
        loop=EpochBasedTrainLoop(epochs),
        work_dir=folder,
        resume=resume,
        resume_override=given.get("resume_override", ()),
        device="cpu",
    )


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run of one epoch of four batches."""
    runner(tmp_path, 1, resume=False).train()
    return tmp_path


def group(of: Runner) -> dict[str, Any]:
    return of.optimizer.param_groups[0]


def test_numbers_that_differ_are_told(begun: Path, caplog: pytest.LogCaptureFixture) -> None:
    again = runner(begun, 2, lr=0.2, weight_decay=0.5, betas=(0.8, 0.9))
    again.prepare()
    assert [group(again)[key] for key in ("lr", "weight_decay", "betas")] == [0.1, 0.01, (0.9, 0.999)]
    for told in (
        "optim.lr keeps the value of the checkpoint, 0.1, and the config's 0.2 is ignored. To use the value of the "
        "config, set resume_override=[optim.lr]",
        "optim.weight_decay keeps the value of the checkpoint, 0.01, and the config's 0.5 is ignored.",
        "optim.betas keeps the value of the checkpoint, [0.9, 0.999], and the config's [0.8, 0.9] is ignored.",
    ):
        assert told in caplog.text


def tags_of(work_dir: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return {key: value for line in lines if line["kind"] == "tags" for key, value in line["tags"].items()}


def test_the_same_numbers_are_not_told(begun: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner(begun, 2).prepare()
    assert "config" not in caplog.text


def test_an_override_is_taken_and_recorded(begun: Path, caplog: pytest.LogCaptureFixture) -> None:
    again = runner(begun, 2, lr=0.2, weight_decay=0.5, betas=(0.8, 0.9), resume_override=["optim.lr", "optim.betas"])
    again.train()
    assert [group(again)[key] for key in ("lr", "weight_decay", "betas")] == [0.2, 0.01, (0.8, 0.9)]
    assert "optim.lr is now 0.2 instead of 0.1." in caplog.text
    assert "set resume_override=[optim.lr,optim.betas,optim.weight_decay]." in caplog.text
    tags = tags_of(begun)
    assert tags["resume_override.optim.lr"] == "0.1 -> 0.2 at iteration 4"
    assert tags["resume_override.optim.betas"] == "[0.9, 0.999] -> [0.8, 0.9] at iteration 4"


def test_a_learning_rate_under_a_schedule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def steps() -> Schedule:
        return Schedule(partial(StepLR, step_size=1, gamma=0.5))

    runner(tmp_path, 1, schedule=steps(), resume=False).train()
    again = runner(tmp_path, 2, schedule=steps(), lr=0.4)
    again.train()
    assert group(again)["lr"] == pytest.approx(0.2)
    assert "optim.lr was 0.1 in the checkpoint; the schedule continues from the config's 0.4." in caplog.text
    caplog.clear()
    runner(tmp_path, 3, schedule=steps(), lr=0.8, resume_override=["optim.lr"]).prepare()
    assert "optim.lr is now 0.8 instead of 0.4." in caplog.text


def test_another_batch_size(begun: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"this run has 8 \(resume_override=\[data.batch_size\]"):
        runner(begun, 2, batch=2).prepare()
    again = runner(begun, 2, batch=2, resume_override=["data.batch_size"])
    again.hook_settings["info"] = RuntimeInfo()
    with caplog.at_level(logging.INFO, "trainyard"):
        again.train()
    assert (again.epoch, again.iter) == (2, 4 + 8)
    assert "16 samples, 8 batches of 2 per epoch; 2 epochs, 12 iterations." in caplog.messages
    assert tags_of(begun)["resume_override.data.batch_size"] == "4 -> 2 at iteration 4"


def test_another_batch_size_within_an_epoch(tmp_path: Path) -> None:
    first = runner(tmp_path, 1, resume=False)
    first.hook_settings["checkpoint"].interval, first.hook_settings["checkpoint"].by = 3, "iter"
    first.train()
    place = sorted((tmp_path / "checkpoints").glob("iter_*3.pt"))[0]
    again = runner(tmp_path / "other", 1, batch=2, resume=place, resume_override=["data.batch_size"])
    again.train()
    assert (again.epoch, again.iter) == (1, 3 + 2)  # 12 of 16 samples were done: 6 batches of 8
    assert extent(again.train_loop, again) == (1, 3 + 2)
    again.train_loop = IterBasedTrainLoop(20)
    again.go_to(0, 6, 3)
    assert extent(again.train_loop, again) == (3, 20), "5 iterations of the first epoch, then 8 and 7"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "optim.lr",
            "resume_override: 'optim.lr' is invalid. Expected null, or a list of keys of optim and data.batch_size",
        ),
        (["optm.lr"], "resume_override: 'optm.lr' is invalid. .* Did you mean 'optim.lr'?"),
        (
            ["optim.weight_dekay"],
            "resume_override: 'optim.weight_dekay' is invalid. .* Did you mean 'optim.weight_decay'?",
        ),
    ],
)
def test_keys_that_cannot_be_overridden(begun: Path, given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runner(begun, 2, resume_override=given).prepare()
