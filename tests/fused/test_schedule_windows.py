"""Windows, other numbers and several schedules in a stack: for each member what its own schedule holds, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.optim import SGD, Adam, Optimizer, RMSprop
from torch.optim import lr_scheduler as torchs
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    StepLR,
)

from trainyard.data import Rings
from trainyard.errors import Unfusable
from trainyard.fused.runner import FusedRunner
from trainyard.fused.schedule import StackedPlateau, StackedSchedule, stack_schedules
from trainyard.fused.train import ALLOWED, NOT_COMPARED
from trainyard.hooks import Hook
from trainyard.runner import Runner
from trainyard.schedules import Plateau, Schedule, Several
from trainyard.sweep import kinds as grouping

CONF = Path(__file__).parents[2] / "conf" / "schedule"
LENGTH, EPOCH = 150, 20
OPTIMIZERS: dict[str, Callable[[int], Any]] = {
    "sgd": lambda k: partial(SGD, momentum=0.9 - k / 20, weight_decay=k / 100),
    "rmsprop": lambda k: partial(RMSprop, momentum=0.5, weight_decay=0.01 + k / 100),
    "adam": lambda k: partial(Adam, betas=(0.9 - k / 10, 0.99), weight_decay=0.1 + k / 7),
}


def optimizer_of(name: str, k: int) -> Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr * (1 + k)} for lr in (0.1, 0.03)]
    return OPTIMIZERS[name](k)(groups)


MAKES: dict[str, Callable[[int], Schedule]] = {
    "window": lambda k: Schedule(
        partial(CosineAnnealingLR, T_max="auto", eta_min=k / 1e3), begin=20, end=90, by="iter"
    ),
    "windows that differ": lambda k: Schedule(
        partial(ExponentialLR, gamma=0.9 + k / 50), begin=5 * k, end=99, by="iter"
    ),
    "momentum": lambda k: Schedule(partial(StepLR, step_size=9, gamma=0.9 - k / 10), param="momentum", by="iter"),
    "decay": lambda k: Schedule(
        partial(CosineAnnealingLR, T_max="auto", eta_min=k / 1e3), param="weight_decay", by="iter"
    ),
    "converted": lambda k: Schedule(
        partial(ExponentialLR, gamma=0.5 + k / 9), begin=1, end=6, by="epoch", convert_to_iter_based=True
    ),
    "cycle": lambda k: Schedule(
        partial(OneCycleLR, max_lr=0.5 + k, total_steps="auto", cycle_momentum=False), begin=30, end=0.9, by="iter"
    ),
    "function": lambda k: Schedule(partial(LambdaLR, lr_lambda=lambda i: 0.99**i), begin=40 + k, by="iter"),
    "several": lambda k: Several(
        {
            "warmup": Schedule(partial(LinearLR, start_factor=0.1, total_iters="auto"), end=33, by="iter"),
            "drops": Schedule(partial(MultiStepLR, milestones=[3, 5], gamma=0.1 + k / 10), by="epoch"),
            "later": Schedule(partial(CosineAnnealingLR, T_max="auto", eta_min=k / 1e4), begin=4, by="epoch"),
            "decay": Schedule(partial(StepLR, step_size=2, gamma=0.5 + k / 9), param="weight_decay", by="epoch"),
            "momentum": Schedule(
                partial(CyclicLR, base_lr=0.5, max_lr=0.9, step_size_up=9, cycle_momentum=False),
                param="momentum",
                begin=10,
                by="iter",
            ),
        }
    ),
}


def bound(schedule: Any, optimizer: Optimizer, length: int = LENGTH) -> Any:
    schedule.bind(optimizer, length=length, epoch_length=EPOCH)
    return schedule


def pair(kind: str, optimizers: Sequence[Optimizer], length: int = LENGTH) -> tuple[StackedSchedule, list[Schedule]]:
    ones, others = ([bound(MAKES[kind](k % 3), it, length) for k, it in enumerate(optimizers)] for _ in range(2))
    stacked = stack_schedules(ones)
    assert isinstance(stacked, StackedSchedule)
    return stacked, others


def member_of(value: Any, k: int) -> Any:
    return tuple(part[k].item() for part in value) if isinstance(value, tuple) else value[k].item()


def assert_row(row: Any, solos: Sequence[Any], optimizers: Sequence[Optimizer], index: int) -> None:
    for k, (solo, optimizer) in enumerate(zip(solos, optimizers, strict=True)):
        for values, own, group in zip(row, solo.row(index), optimizer.param_groups, strict=True):
            held = {key: value for key, value in group.items() if key != "params"}
            assert {**held, **{key: member_of(value, k) for key, value in values.items()}} == {**held, **own}, (
                k,
                index,
            )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", MAKES)
def test_every_row_is_that_of_the_solo_runs(kind: str, name: str) -> None:
    optimizers = [optimizer_of(name, k) for k in (0, 1, 2, 0, 1)]
    stacked, solos = pair(kind, optimizers)
    assert stacked.by == "iter"
    for index in (*range(LENGTH), LENGTH + 9, 3, 0):
        assert_row(stacked.row(index), solos, optimizers, index)


@settings(max_examples=20)
@given(kind=st.sampled_from(sorted(MAKES)), name=st.sampled_from(sorted(OPTIMIZERS)), data=st.data())
def test_members_leave_and_rows_are_asked_for_in_any_order(kind: str, name: str, data: st.DataObject) -> None:
    optimizers = [optimizer_of(name, k) for k in range(4)]
    stacked, solos = pair(kind, optimizers)
    indices = st.lists(st.integers(0, LENGTH + 5), max_size=6)
    for index in data.draw(indices):
        assert_row(stacked.row(index), solos, optimizers, index)
    left = data.draw(st.lists(st.sampled_from(range(4)), min_size=1, unique=True))
    stacked.keep(torch.tensor(left))
    solos, optimizers = [solos[k] for k in left], [optimizers[k] for k in left]
    for index in data.draw(indices):
        assert_row(stacked.row(index), solos, optimizers, index)


@pytest.mark.parametrize("kind", ["window", "several", "decay"])
def test_each_kind_resumes_the_other(kind: str) -> None:
    length, at = 1500, 1200
    optimizers = [optimizer_of("adam", k) for k in range(3)]
    stacked, solos = pair(kind, optimizers, length)
    for index in range(0, at, 7):
        stacked.row(index)
        for solo in solos:
            solo.row(index)
    states = [stacked.member(k).state_dict() for k in range(3)]
    assert states == [solo.state_dict() for solo in solos]
    assert states[0]["first"] > 0
    alone = bound(MAKES[kind](2), optimizers[2], length)
    alone.load_state_dict(states[2])
    again, _ = pair(kind, optimizers, length)
    for k, solo in enumerate(solos):
        again.member(k).load_state_dict(solo.state_dict())
    for index in range(at, length, 11):
        assert alone.row(index) == solos[2].row(index)
        assert_row(again.row(index), solos, optimizers, index)


def test_members_that_differ_in_numbers_are_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    get_lr = CosineAnnealingLR.get_lr

    def counted(self: Any) -> Any:
        nonlocal calls
        calls += 1
        return get_lr(self)

    monkeypatch.setattr(torchs.CosineAnnealingLR, "get_lr", counted)
    schedules = [
        bound(
            Several(
                [
                    Schedule(partial(CosineAnnealingLR, T_max="auto", eta_min=k / 1e6), begin=9, by="iter"),
                    Schedule(partial(ExponentialLR, gamma=0.9 + k / 1e4), param="weight_decay", by="epoch"),
                ]
            ),
            SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1 + k, weight_decay=k / 1e3),
        )
        for k in range(128)
    ]
    calls = 0
    stacked = stack_schedules(schedules)
    for index in range(LENGTH):
        assert len(stacked.row(index)[0]["lr"]) == 128
    assert calls <= LENGTH


def test_a_tensor_is_the_same_object_while_it_holds() -> None:
    stacked, _ = pair("several", [optimizer_of("adam", k) for k in range(3)])
    decays = [stacked.row(index)[0]["weight_decay"] for index in range(LENGTH)]
    changes = [index for index in range(1, LENGTH) if decays[index] is not decays[index - 1]]
    assert changes == [40, 80, 120]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("param", ["lr", "momentum", "weight_decay"])
def test_plateaus_of_another_number(param: str, name: str) -> None:
    optimizers = [optimizer_of(name, k) for k in range(3)]
    ones, solos = (
        [bound(Plateau(mode="min", patience=k, factor=0.5, param=param), optimizers[k]) for k in range(3)]
        for _ in range(2)
    )
    stacked = stack_schedules(ones)
    assert isinstance(stacked, StackedPlateau)
    for turn in range(9):
        before, row = (stacked.row(turn), stacked.row(turn + 1))
        assert row is before
        assert_row(row, solos, optimizers, turn)
        stacked.observe(1.0, 1.0, 1.0)
        for solo in solos:
            solo.observe(1.0)
        if turn == 5:
            stacked.keep(torch.tensor([2, 0, 1]))
            optimizers, solos = [[them[k] for k in (2, 0, 1)] for them in (optimizers, solos)]


def test_jobs_whose_schedules_differ_in_numbers_are_of_one_kind() -> None:
    def of(end: float, steps: float, param: str = "weight_decay") -> dict[str, Any]:
        schedule: Any = OmegaConf.to_container(OmegaConf.load(CONF / "several.yaml"))
        schedule["schedules"]["warmup"]["end"] = end
        schedule["schedules"]["weight_decay"] |= {"param": param, "begin": 1}
        schedule["schedules"]["cosine"]["scheduler"]["T_max"] = steps
        return {"schedule": schedule}

    found = grouping.kinds([of(100, 9), of(0.1, 0.5), of(100, 9, "momentum")], ALLOWED, NOT_COMPARED)
    assert [kind.members for kind in found] == [[0, 1], [2]]


def test_plateaus_of_different_numbers_are_not_stacked() -> None:
    plateaus = [bound(Plateau(param=param), optimizer_of("sgd", 0)) for param in ("lr", "weight_decay")]
    with pytest.raises(Unfusable, match="different scheduled values: lr, weight_decay"):
        stack_schedules(plateaus)


class Held(Hook):
    """What the optimizer's group holds in every iteration, for each member."""

    priority = "LOWEST"
    stackable = True

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any) -> None:
        (group,) = runner.optimizer.param_groups
        self.all.append({key: group[key] for key in ("lr", "momentum", "betas", "weight_decay") if key in group})


@pytest.mark.parametrize("optim", ["SGD", "AdamW"])
def test_a_group_trains_as_its_solo_runs_do(optim: str) -> None:
    schedule: Any = OmegaConf.to_container(OmegaConf.load(CONF / "several.yaml"))
    schedule["schedules"]["warmup"]["end"] = 7
    schedule["schedules"]["momentum"] = schedule["schedules"]["weight_decay"] | {"param": "momentum", "begin": 1}
    numbers = {"SGD": {"momentum": 0.9}, "AdamW": {"betas": [0.9, 0.99]}}[optim]
    configs = [
        {
            "model": {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [8]},
            "data": Rings(num_samples=200, batch_size=24),
            "optim": {
                "_target_": f"torch.optim.{optim}",
                "_partial_": True,
                "lr": 0.1 / (1 + k),
                "weight_decay": 0.1 * k,
            }
            | numbers,
            "schedule": schedule,
            "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 4},
            "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
            "hook": {"param_schedule": {"_target_": "trainyard.hooks.ParamSchedule"}, "held": Held()},
            "device": "cpu",
        }
        for k in range(3)
    ]
    fused = FusedRunner(configs)
    fused.train()
    together = fused.dispatch.hooks["held"].all  # type: ignore[attr-defined]
    for k, config in enumerate(configs):
        held = Held()
        solo = Runner.from_cfg(config | {"hook": config["hook"] | {"held": held}})
        solo.train()
        rows = [{key: member_of(value, k) for key, value in row.items()} for row in together]
        assert rows == [{key: tuple(v) if key == "betas" else v for key, v in row.items()} for row in held.all]
        assert len({str(row) for row in rows}) > 8
        for own, parameter in zip(fused.all_members[k].model.parameters(), solo.model.parameters(), strict=True):
            torch.testing.assert_close(own, parameter, rtol=1e-4, atol=1e-5)
