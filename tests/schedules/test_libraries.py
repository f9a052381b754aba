"""Schedulers of transformers and timm, by `_target_`, give the numbers that the library gives by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from trainyard.schedules import Schedule


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


def rows(scheduler: Any, length: int = 20) -> list[float]:
    schedule = Schedule(scheduler, by="iter")
    schedule.bind(optimizer(), length=length, unit="iter")
    return [schedule.row(index)[0].get("lr", 0.5) for index in range(length)]


def test_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    made = optimizer()
    theirs, found = transformers.get_cosine_schedule_with_warmup(made, 4, 20), []
    for _ in range(20):
        found.append(made.param_groups[0]["lr"])
        made.step()
        theirs.step()
    given = partial(transformers.get_cosine_schedule_with_warmup, num_warmup_steps=4, num_training_steps="auto")
    assert rows(given) == found


class TimmLike:
    """The interface of timm's schedulers: a value for the position that it is told."""

    t_in_epochs = False

    def __init__(self, optimizer: Any, t_initial: int) -> None:
        self.groups, self.t_initial = optimizer.param_groups, t_initial

    def step(self, epoch: int) -> None:
        raise AssertionError("it counts updates")

    def step_update(self, num_updates: int) -> None:
        self.update_groups(1 - num_updates / self.t_initial)

    def update_groups(self, value: float) -> None:
        for group in self.groups:
            group["lr"] = value


def test_a_scheduler_that_is_told_its_position() -> None:
    assert rows(partial(TimmLike, t_initial="auto")) == [1 - step / 20 for step in range(20)]


@pytest.mark.parametrize("name", ["CosineLRScheduler", "StepLRScheduler", "TanhLRScheduler"])
def test_timm(name: str) -> None:
    try:
        timm = pytest.importorskip("timm.scheduler", exc_type=ImportError)
    except RuntimeError:
        pytest.skip("torchvision of another torch")
    keywords = {"decay_t": 5} if name == "StepLRScheduler" else {"t_initial": 20}
    keywords |= {"warmup_t": 3, "warmup_lr_init": 0.1, "t_in_epochs": False}
    made = optimizer()
    theirs, found = getattr(timm, name)(made, **keywords), []
    for step in range(20):
        theirs.step_update(step)
        found.append(made.param_groups[0]["lr"])
    assert rows(partial(getattr(timm, name), **keywords)) == found
