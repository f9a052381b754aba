"""The learning rate of every iteration of a run, against torch's schedulers stepped by hand."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from trainyard.hooks import Checkpoint, Hook, ParamSchedule
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from trainyard.schedules import Plateau, Schedule

BATCHES = 6
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class Rates(Hook):
    """What each iteration is made with."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.all: list[Any] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any) -> None:
        (group,) = runner.optimizer.param_groups
        self.all.append((group["lr"], group["momentum"]))


def by_hand(make_scheduler: Any, length: Any) -> Any:
    """Rates and momenta during each of `length` units."""
    optimizer = SGD([torch.zeros(1)])
    scheduler = make_scheduler(optimizer)
    rows = []
    for _ in range(length):
        rows.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        scheduler.step()
    return rows


def warmup_cosine(optimizer: Any) -> Any:
    parts = [
        lr_scheduler.LinearLR(optimizer, start_factor=1e-3, total_iters=4),
        lr_scheduler.CosineAnnealingLR(optimizer, T_max=14),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, [4])


BY_ITER = {
    "cosine": (Schedule(partial(lr_scheduler.CosineAnnealingLR, T_max="auto"), by="iter"),
               partial(lr_scheduler.CosineAnnealingLR, T_max=18)),
    "onecycle": (Schedule(partial(lr_scheduler.OneCycleLR, max_lr="auto", total_steps="auto"), by="iter"),
                 partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=19)),
    "warmup": (Schedule(partial(lr_scheduler.CosineAnnealingLR, T_max="auto"), warmup=4, by="iter"), warmup_cosine),
}  # fmt: skip


@pytest.mark.parametrize("loop", ["epoch", "iter"])
@pytest.mark.parametrize("name", ["cosine", "warmup"])
def test_by_iteration(make: Any, name: str, loop: str) -> None:
    schedule, scheduler = BY_ITER[name]
    rates = Rates()
    loops = {"epoch": EpochBasedTrainLoop(3), "iter": IterBasedTrainLoop(18)}
    make({"schedule": ParamSchedule(), "rates": rates}, loop=loops[loop], optim=SGD, schedule=schedule).train()
    assert rates.all == by_hand(scheduler, 18)


def test_the_hook_may_have_another_name(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    schedule = Schedule(partial(lr_scheduler.CosineAnnealingLR, T_max="auto"))
    for hooks, warns in (({"mine": ParamSchedule()}, False), ({}, True)):
        caplog.clear()
        make(hooks, optim=SGD, schedule=schedule).train()
        assert ("The schedule has no effect" in caplog.text) == warns


def test_the_momentum_is_cycled_too(make: Any) -> None:
    rates = Rates()
    schedule = Schedule(partial(lr_scheduler.OneCycleLR, max_lr="auto", total_steps=19), by="iter")
    make({"schedule": ParamSchedule(), "rates": rates}, optim=SGD, schedule=schedule).train()
    assert rates.all == by_hand(BY_ITER["onecycle"][1], 18)
    assert len({momentum for _, momentum in rates.all}) > 10


@pytest.mark.parametrize("loop", ["epoch", "iter"])
def test_by_epoch(make: Any, loop: str) -> None:
    rates = Rates()
    schedule = Schedule(partial(lr_scheduler.StepLR, step_size=2, gamma=0.5), by="epoch")
    loops = {"epoch": EpochBasedTrainLoop(5), "iter": IterBasedTrainLoop(27)}
    make({"schedule": ParamSchedule(), "rates": rates}, loop=loops[loop], optim=SGD, schedule=schedule).train()
    epochs = by_hand(partial(lr_scheduler.StepLR, step_size=2, gamma=0.5), 5)
    expected = [row for row in epochs for _ in range(BATCHES)]
    assert rates.all == expected[: len(rates.all)]
    assert len(rates.all) == {"epoch": 30, "iter": 27}[loop]


@pytest.mark.parametrize("by", ["epoch", "iter"])
@pytest.mark.parametrize("at", [4, 6, 11])
def test_a_resumed_run_goes_on_in_the_schedule(make: Any, interrupt_at: Any, tmp_path: Path, by: str, at: int) -> None:
    rates = Rates()
    for stop in ({"stop": interrupt_at(at)}, {}):
        hooks = {"schedule": ParamSchedule(), "rates": rates, "checkpoint": Checkpoint(), **stop}
        schedule = Schedule(partial(lr_scheduler.CosineAnnealingLR, T_max="auto"), by=by)
        make(hooks, optim=SGD, schedule=schedule, work_dir=tmp_path, resume=True).train()
    length = 3 if by == "epoch" else 18
    rows = by_hand(partial(lr_scheduler.CosineAnnealingLR, T_max=length), length)
    assert rates.all == [row for row in rows for _ in range(18 // length)]


VALUES = [0.5, 0.4, 0.4, 0.4, 0.3, 0.3, 0.3, 0.3]


@pytest.mark.parametrize("at", [None, 14, 25])
def test_a_plateau_sees_every_validation(
    make: Any, scripted: Any, interrupt_at: Any, tmp_path: Path, at: int | None
) -> None:
    rates = Rates()
    for stop in ([interrupt_at(at)] if at else []) + [None]:
        hooks = {"schedule": ParamSchedule(), "rates": rates, "checkpoint": Checkpoint()}
        seen = len(rates.all) // BATCHES
        make(
            hooks | ({"stop": stop} if stop else {}),
            epochs=len(VALUES),
            optim=SGD,
            schedule=Plateau(patience=1, factor=0.5),
            metrics={"loss": scripted(VALUES[seen:])},
            work_dir=tmp_path,
            resume=True,
        ).train()

    optimizer = SGD([torch.zeros(1)])
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.5)
    expected = []
    for value in VALUES:
        expected += [optimizer.param_groups[0]["lr"]] * BATCHES
        scheduler.step(value)
    assert [lr for lr, _ in rates.all] == expected
    assert len(set(expected)) == 3


def test_a_plateau_may_watch_another_metric(make: Any, scripted: Any) -> None:
    rates = Rates()
    metrics = {"loss": scripted([3.0, 2.0, 1.0]), "score": scripted([0.5, 0.5, 0.5])}
    schedule = Plateau("val/score", "max", patience=0, factor=0.5)
    make({"schedule": ParamSchedule(), "rates": rates}, optim=SGD, schedule=schedule, metrics=metrics).train()
    assert [lr for lr, _ in rates.all[::BATCHES]] == [0.1, 0.1, 0.05]


def test_validating_alone_does_not_step_a_plateau(make: Any, scripted: Any) -> None:
    runner = make(
        {"schedule": ParamSchedule()}, optim=SGD, schedule=Plateau(patience=0), metrics={"loss": scripted([1.0] * 9)}
    )
    for _ in range(3):
        runner.val()
    runner.prepare()
    assert runner.schedule.row(0) == [{"lr": 0.1}]


def test_without_a_schedule_the_rate_stays(make: Any) -> None:
    rates = Rates()
    make({"schedule": ParamSchedule(), "rates": rates}, optim=SGD).train()
    assert set(rates.all) == {(0.1, 0.9)}


def test_without_the_hook_a_schedule_does_nothing(make: Any) -> None:
    rates = Rates()
    make({"rates": rates}, optim=SGD, schedule=BY_ITER["cosine"][0]).train()
    assert set(rates.all) == {(0.1, 0.9)}
