"""Optimizers that train other weights than those to evaluate."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from trainyard.hooks import Checkpoint
from trainyard.metrics import CrossEntropy
from trainyard.models import MLP
from trainyard.runner import EpochBasedTrainLoop, Runner, checkpoint


class Switching(torch.optim.Optimizer):
    """SGD whose weights to evaluate lie halfway to a slow average, as a schedule-free optimizer computes them."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "train_mode": False})

    @torch.no_grad()
    def _go(self, training: bool, weight: float) -> None:
        for group in self.param_groups:
            if group["train_mode"] is not training:
                for parameter in group["params"]:
                    if "z" in self.state[parameter]:
                        parameter.lerp_(self.state[parameter]["z"], weight)
            group["train_mode"] = training

    def eval(self) -> None:
        self._go(False, 0.5)

    def train(self) -> None:
        self._go(True, -1.0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            assert group["train_mode"], "not in train mode"
            for parameter in group["params"]:
                z = self.state[parameter].setdefault("z", parameter.clone())
                parameter.sub_(group["lr"] * parameter.grad)
                z.lerp_(parameter, 0.1)


def optimizers() -> list[Any]:
    return [partial(Switching), "schedulefree"]


def runner(folder: Path | None, epochs: int, given: Any, *, interval: int = 1, resume: Any = False) -> Runner:
    if given == "schedulefree":
        given = partial(pytest.importorskip("schedulefree").AdamWScheduleFree, lr=0.05)
    torch.manual_seed(0)
    x = torch.randn(32, 2)
    data = TensorDataset(x, (x.sum(1) > 0).long())
    return Runner(
        MLP(2, 2, [4]),
        {"train": DataLoader(data, 8), "val": DataLoader(data, 32), "test": DataLoader(data, 32)},
        given,
        hooks={"checkpoint": Checkpoint()} if folder else {},
        metrics={"loss": CrossEntropy()},
        loop=EpochBasedTrainLoop(epochs, val_interval=interval),
        work_dir=folder,
        resume=resume,
        device="cpu",
    )


def assert_same(one: Any, other: Any) -> None:
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("given", optimizers())
def test_validation_does_not_change_the_training(given: Any) -> None:
    often, once = runner(None, 4, given), runner(None, 4, given, interval=4)
    often.train()
    once.train()
    assert_same(often.model.state_dict(), once.model.state_dict())


@pytest.mark.parametrize("given", optimizers())
def test_checkpoints_hold_both_weights(given: Any, tmp_path: Path) -> None:
    run = runner(tmp_path, 1, given)
    metrics = run.train()[0]
    state = checkpoint.load(next((tmp_path / "checkpoints").glob("epoch_*.pt")))
    assert any((state["model"][name] != value).any() for name, value in state["eval_model"].items())
    assert state["optimizer"]["param_groups"][0]["train_mode"] is True
    assert_same(state["eval_model"], run.model.state_dict())  # what the training leaves behind is what was evaluated
    assert run.test()[0]["test/loss"] == metrics["val/loss"]


@pytest.mark.parametrize("given", optimizers())
def test_a_resumed_run_ends_with_the_same_bits(given: Any, tmp_path: Path) -> None:
    whole = runner(tmp_path / "whole", 4, given)
    whole.train()
    runner(tmp_path / "part", 2, given).train()
    resumed = runner(tmp_path / "part", 4, given, resume=True)
    resumed.train()
    assert_same(whole.model.state_dict(), resumed.model.state_dict())
