import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, Logger, NaNGuard
from trainyard.models import BaseModel
from trainyard.runner import IterBasedTrainLoop, checkpoint
from trainyard.track import read


def optim(lr: Any) -> Any:
    return {"_target_": "torch.optim.SGD", "_partial_": True, "lr": lr}


def weights_in(folder: Any) -> Any:
    """Whether each checkpoint's weights are finite numbers, by the file's name."""
    return {
        file.name: all(bool(tensor.isfinite().all()) for tensor in checkpoint.load(file)["model"].values())
        for file in sorted((folder / "checkpoints").glob("*.pt"))
    }


def often() -> Any:
    return Checkpoint(1, by="iter", max_keep=None)


class Distance(BaseModel):
    """A loss that is 0 where its gradient is no number: the root at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x: Any, y: Any, mode: str = "tensor") -> Any:
        return {"loss": self.weight.square().sum().sqrt()} if mode == "loss" else x * self.weight


CAUSES = {"gradient": {"model": Distance()}, "rate": {"optim": optim(1e30)}}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("interval", [1, 4, 100])
def test_no_checkpoint_holds_what_is_no_number(make: Any, tmp_path: Path, cause: Any, interval: int) -> None:
    hooks = {"guard": NaNGuard(interval), "checkpoint": often()}
    runner = make(hooks, work_dir=tmp_path, **copy.deepcopy(CAUSES[cause]))
    runner.train()
    (member,) = runner.members
    assert member.failed
    assert runner.iter < 18, "it does not go on"
    assert all(weights_in(tmp_path).values())
    if cause == "gradient":
        assert (runner.iter, member.stop_reason) == (1, "a weight is not finite after iteration 1")


@pytest.mark.parametrize("cause", CAUSES)
def test_without_it_they_do(make: Any, tmp_path: Path, cause: Any) -> None:
    runner = make({"checkpoint": often()}, work_dir=tmp_path, **copy.deepcopy(CAUSES[cause]))
    runner.train()
    assert runner.iter == 18
    assert not runner.members[0].failed
    assert sum(weights_in(tmp_path).values()) <= 1


def test_it_looks_only_now_and_then(make: Any) -> None:
    runner = make({"guard": NaNGuard(4)}, optim=optim(1e30))
    runner.train()
    assert runner.iter == 4
    assert runner.members[0].stop_reason == "the loss is nan at iteration 4"


@pytest.mark.parametrize("iterations", [4, 13])
def test_the_end_of_the_run_is_looked_at(make: Any, iterations: int) -> None:
    """Without a checkpoint there, and between two looks."""
    runner = make({"guard": NaNGuard(100)}, loop=IterBasedTrainLoop(iterations), optim=optim(1e30))
    runner.train()
    assert runner.members[0].failed


def test_the_run_is_marked_as_failed_with_the_reason(make: Any, tmp_path: Path) -> None:
    make({"guard": NaNGuard(1), "logger": Logger(1)}, work_dir=tmp_path, optim=optim(1e30)).train()
    records = [record for record, _ in read(tmp_path / "metrics.jsonl")]
    assert (records[-1]["status"], records[-1]["message"][:11]) == ("FAILED", "the loss is")
    losses = [record["values"]["train/loss"] for record in records if "train/loss" in record.get("values", {})]
    assert math.isfinite(losses[0])
    assert not math.isfinite(losses[-1]), "the journal shows it"


def test_a_training_that_is_well_is_left_alone(make: Any) -> None:
    guarded, free = make({"guard": NaNGuard(1)}), make({})
    guarded.train()
    free.train()
    assert guarded.members[0].stop_reason is None
    assert all(torch.equal(a, b) for a, b in zip(guarded.model.parameters(), free.model.parameters(), strict=True))


@pytest.mark.parametrize("interval", [0, 1.5])
def test_an_interval_that_cannot_be(interval: float) -> None:
    with pytest.raises(ConfigError, match=r"interval: .* is invalid. Expected an integer of at least 1"):
        NaNGuard(interval)
