"""Checkpoints that fall due too soon are left out; the best and the last state are on disk at the end all the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, Hook, Logger
from trainyard.runner import EpochBasedTrainLoop, Runner, checkpoint


class Weights(Hook):
    """Keeps the model's weights after each epoch's validation."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.after: dict[Any, Any] = {}

    def after_val(self, runner: Runner) -> None:
        if runner.training:
            self.after[runner.epoch] = {name: w.clone() for name, w in runner.model.state_dict().items()}


def _run(work_dir: Any, min_seconds: Any, epochs: int = 6) -> Any:
    weights = Weights()
    runner = Runner(
        {"_target_": "trainyard.models.MLP", "in_features": "auto", "num_classes": "auto", "hidden": [8]},
        {"_target_": "trainyard.data.Rings", "num_samples": 200},
        {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.05},
        hooks={"checkpoint": Checkpoint(min_seconds=min_seconds, max_keep=None), "logger": Logger(), "w": weights},
        metrics={"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        loop=EpochBasedTrainLoop(epochs),
        device="cpu",
        work_dir=work_dir,
    )
    runner.train()
    return runner, weights.after


@pytest.mark.parametrize("min_seconds", [0.0, 1000.0])
def test_the_best_and_the_last_are_there(tmp_path: Path, min_seconds: float) -> None:
    runner, after = _run(tmp_path, min_seconds)
    best = checkpoint.load(tmp_path / "checkpoints/best.pt")
    assert best["epoch"] == runner.members[0].best.epoch
    for name, weight in after[best["epoch"]].items():
        assert torch.equal(best["model"][name], weight)
    saved = checkpoint.read_last(tmp_path / "checkpoints")
    every = [f"epoch_{epoch:04d}.pt" for epoch in range(1, 7)]
    assert saved == (every if min_seconds == 0 else [every[0], every[-1]])


def test_a_negative_time() -> None:
    with pytest.raises(ConfigError, match="min_seconds: -1"):
        Checkpoint(min_seconds=-1)
