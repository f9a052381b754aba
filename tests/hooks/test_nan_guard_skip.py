"""Steps whose gradients are no finite numbers are left out, and counted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, Hook, Logger, NaNGuard
from trainyard.models import BaseModel

BAD = (3, 4, 9)


class Now(Hook):
    """Tells the model which iteration it is in."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any) -> None:
        runner.model.now = runner.iter + 1


class Spoilt(BaseModel):
    """A classifier whose loss is not finite in some iterations."""

    def __init__(self, by: Any = float("nan"), bad: Any = BAD) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)
        self.now, self.by, self.bad = 0, by, bad

    def forward(self, x: Any, y: Any = None, mode: str = "tensor") -> Any:
        logits = self.net(x)
        if mode != "loss":
            return logits
        loss = nn.functional.cross_entropy(logits, y)
        return {"loss": loss * self.by if self.now in self.bad else loss}


class States(Hook):
    """Weights and Adam's moments after each iteration."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        state = runner.optimizer.state_dict()["state"]
        moments = [tensor.clone() for key in state for tensor in state[key].values()]
        self.all.append([*(tensor.detach().clone() for tensor in runner.model.parameters()), *moments])


def same(first: Any, second: Any) -> Any:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def spoilt(**more: Any) -> Any:
    return {"_target_": Spoilt, **more}


@pytest.mark.parametrize("by", [float("nan"), float("inf")])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_steps_are_not_taken(make: Any, by: Any, clip: float | None) -> None:
    states = States()
    hooks = {"guard": NaNGuard(1, action="skip"), "now": Now(), "states": states}
    runner = make(hooks, model=spoilt(by=by), clip_grad_norm=clip)
    (metrics,) = runner.train()
    assert runner.iter == 18
    assert runner.members[0].stop_reason is None
    stood = [number for number in range(2, 19) if same(states.all[number - 2], states.all[number - 1])]
    assert stood == list(BAD)
    assert metrics["val/loss"] > 0


def test_a_group_of_accumulated_batches_is_skipped_together(make: Any) -> None:
    states = States()
    hooks = {"guard": NaNGuard(action="skip"), "now": Now(), "states": states}
    make(hooks, model=spoilt(bad=[8]), accumulate=3).train()
    stood = [number for number in range(6, 19, 3) if same(states.all[number - 4], states.all[number - 1])]
    assert stood == [9]


def test_they_are_counted_also_over_a_resume(make: Any, points: Any, interrupt_at: Any, tmp_path: Path) -> None:
    def run(**more: Any) -> None:
        hooks = {"guard": NaNGuard(action="skip"), "now": Now(), "logger": Logger(2), "checkpoint": Checkpoint()}
        make(hooks | more, model=spoilt(), work_dir=tmp_path, resume=True).train()

    run(stop=interrupt_at(5))
    run()
    counted = {step: value for (name, step), value in points(tmp_path).items() if name == "train/skipped"}
    assert counted == {step: sum(bad <= step for bad in BAD) for step in range(2, 19, 2)}


def test_a_training_that_is_well_takes_the_same_steps(make: Any) -> None:
    guarded, free = make({"guard": NaNGuard(action="skip")}), make({})
    guarded.train()
    free.train()
    assert all(torch.equal(a, b) for a, b in zip(guarded.model.parameters(), free.model.parameters(), strict=True))


@pytest.mark.gpu
def test_under_a_gradient_scaler(make: Any) -> None:
    hooks = {"guard": NaNGuard(action="skip"), "now": Now()}
    runner = make(hooks, model=spoilt(), device="cuda", precision="fp16")
    runner.train()
    assert int(hooks["guard"].state_dict()["skipped"]) >= len(BAD)
    assert all(parameter.isfinite().all() for parameter in runner.model.parameters())


def test_an_action_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r"action: 'ignore' is invalid. Expected one of stop, skip"):
        NaNGuard(action="ignore")


class Two(Spoilt):
    """Two optimizers take turns; only the loss of the second is spoilt."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(2, 2)

        self.optimizer_groups = {"first": ["other.*"], "second": ["net.*"]}

    def train_steps(self, batch: Any) -> Iterator[Any]:
        x, y = batch
        yield "first", {"loss": nn.functional.cross_entropy(self.other(x), y)}
        yield "second", self(x, y, mode="loss")


def test_each_of_several_optimizers_skips_its_own(make: Any) -> None:
    weights = []

    class Both(Hook):
        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            weights.append([layer.weight.detach().clone() for layer in (runner.model.other, runner.model.net)])

    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    guard = NaNGuard(action="skip")
    make(
        {"guard": guard, "now": Now(), "both": Both()}, model={"_target_": Two}, optim={"first": sgd, "second": sgd}
    ).train()
    stood = [[i for i in range(2, 19) if torch.equal(weights[i - 2][k], weights[i - 1][k])] for k in (0, 1)]
    assert stood == [[], list(BAD)]
    assert guard.state_dict() == {"skipped": len(BAD)}
