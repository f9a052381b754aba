"""Optimizers that train other weights than those to evaluate."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from trainyard.hooks import Checkpoint, Hook, PreciseBN
from trainyard.metrics import CrossEntropy
from trainyard.models import MLP, Supervised
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


def runner(
    folder: Path | None,
    epochs: int,
    given: Any,
    *,
    interval: int = 1,
    resume: Any = False,
    hooks: dict[str, Hook] | None = None,
) -> Runner:
    if given == "schedulefree":
        given = partial(pytest.importorskip("schedulefree").AdamWScheduleFree, lr=0.05)
    torch.manual_seed(0)
    x = torch.randn(32, 2)
    data = TensorDataset(x, (x.sum(1) > 0).long())
    normed = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    return Runner(
        Supervised(normed) if hooks else MLP(2, 2, [4]),
        {"train": DataLoader(data, 8), "val": DataLoader(data, 32), "test": DataLoader(data, 32)},
        given,
        hooks=hooks or ({"checkpoint": Checkpoint()} if folder else {}),
        metrics={"loss": CrossEntropy()},
        loop=EpochBasedTrainLoop(epochs, val_interval=interval),
        work_dir=folder,
        resume=resume,
        device="cpu",
    )


class Weights(PreciseBN):
    """Keeps the weights with which statistics are measured, and the weights of the validation after it."""

    def __init__(self) -> None:
        super().__init__(batches=2)
        self.measured: list[Any] = []
        self.evaluated: list[Any] = []

    def _measure(self, runner: Runner, *arguments: Any) -> None:
        self.measured.append([parameter.clone() for parameter in runner.model.parameters()])
        super()._measure(runner, *arguments)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        self.evaluated.append([parameter.clone() for parameter in runner.model.parameters()])


@pytest.mark.parametrize("given", optimizers())
def test_statistics_are_those_of_the_evaluated_weights(given: Any) -> None:
    hook = Weights()
    run = runner(None, 3, given, hooks={"precise_bn": hook})
    run.train()
    assert len(hook.measured) == len(hook.evaluated) == 3
    for measured, evaluated in zip(hook.measured, hook.evaluated, strict=True):
        for one, other in zip(measured, evaluated, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


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
