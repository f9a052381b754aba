"""A stacked schedule holds, for each member, what its own schedule holds, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer
from torch.optim import lr_scheduler as torchs
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    StepLR,
)

from trainyard.errors import Unfusable
from trainyard.fused.schedule import ROWS, StackedPlateau, StackedSchedule, stack_schedules
from trainyard.schedules import Plateau, Schedule

CONF = Path(__file__).parents[2] / "conf" / "schedule"
MAKES = {"sgd": partial(SGD, momentum=0.9), "adam": partial(Adam, betas=(0.8, 0.99))}
NUMBERS: dict[str, list[dict[str, Any]]] = {
    "constant": [{"warmup": 0}, {"warmup": 5}, {"warmup": 0.1, "warmup_factor": 0.2}],
    "cosine": [{"scheduler": {"eta_min": 0}}, {"scheduler": {"eta_min": 1e-3, "T_max": 50}}, {"warmup": 7}],
    "exponential": [{"scheduler": {"gamma": 0.95}}, {"scheduler": {"gamma": 0.99}}, {"warmup": 3}],
    "multistep": [{}, {"scheduler": {"gamma": 0.5}}, {"scheduler": {"milestones": [3, 70]}}],
    "onecycle": [{}, {"scheduler": {"max_lr": 0.3}}, {"scheduler": {"pct_start": 0.5, "div_factor": 10.0}}],
    "poly": [{}, {"scheduler": {"power": 0.5}}, {"scheduler": {"power": 2.0}}],
    "step": [{}, {"scheduler": {"gamma": 0.5}}, {"scheduler": {"step_size": 20}}],
    "warmup_cosine": [{}, {"warmup": 0.2}, {"scheduler": {"eta_min": 1e-4}}],
}


def from_conf(option: str, **changes: Any) -> Any:
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{option}.yaml"), changes), _convert_="all")


def optimizer_of(make: Any = MAKES["sgd"], lr: float = 0.1) -> Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in (lr, lr / 7)]
    return make(groups)


def bound(schedule: Any, optimizer: Optimizer, length: int) -> Any:
    schedule.bind(optimizer, length=length)
    return schedule


def numbers_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def member_of(value: Any, k: int) -> Any:
    return tuple(part[k].item() for part in value) if isinstance(value, tuple) else value[k].item()


def assert_row(row: Any, solos: Sequence[Any], optimizers: Sequence[Optimizer], index: int) -> None:
    """The groups of each optimizer, once its part of `row` is written over them, are what its own schedule makes."""
    for k, (solo, optimizer) in enumerate(zip(solos, optimizers, strict=True)):
        for values, own, held in zip(row, solo.row(index), numbers_of(optimizer), strict=True):
            for value in values.values():
                for part in value if isinstance(value, tuple) else (value,):
                    assert part.dtype == torch.float64
                    assert part.shape == (len(solos),)
            assert {**held, **{key: member_of(value, k) for key, value in values.items()}} == {**held, **own}, (
                index,
                k,
            )


def pair(makes: Sequence[Any], optimizers: Sequence[Optimizer], length: int) -> tuple[StackedSchedule, list[Schedule]]:
    """The stack of what `makes` make, and as many again that stay on their own."""
    ones, others = (
        [bound(make(), optimizer, length) for make, optimizer in zip(makes, optimizers, strict=True)] for _ in range(2)
    )
    stacked = stack_schedules(ones)
    assert isinstance(stacked, StackedSchedule)
    return stacked, others


def test_every_option_has_its_numbers_here() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == {*NUMBERS, "plateau", "several"}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize(("by", "length"), [("epoch", 9), ("iter", 700)])
@pytest.mark.parametrize("option", NUMBERS)
def test_every_option_equals_its_solo_runs(option: str, by: str, length: int, make: Any) -> None:
    numbers = [dict(by=by, **NUMBERS[option][k % 3]) for k in range(5)]
    optimizers = [optimizer_of(make, lr) for lr in (0.1, 0.02, 0.1, 0.3, 0.02)]
    stacked, solos = pair([partial(from_conf, option, **given) for given in numbers], optimizers, length)
    assert stacked.by == by
    assert not stacked.constant
    for index in (*range(length), length + 50, 3, 0):
        assert_row(stacked.row(index), solos, optimizers, index)


NAMES = {
    "multiplicative": lambda k: partial(MultiplicativeLR, lr_lambda=lambda epoch: 0.99),
    "lambda": lambda k: partial(LambdaLR, lr_lambda=lambda epoch: 0.5 ** (epoch // (k + 1))),
    "constant": lambda k: partial(ConstantLR, factor=0.1 + k / 10),
    "linear": lambda k: partial(LinearLR, start_factor=0.1 + k / 10, total_iters="auto"),
    "restarts": lambda k: partial(CosineAnnealingWarmRestarts, T_0=10 + k % 2, eta_min=k / 1e4),
    "cyclic": lambda k: partial(CyclicLR, base_lr="auto", max_lr=0.5 + k, step_size_up=7, cycle_momentum="auto"),
    "exp range": lambda k: partial(CyclicLR, base_lr=1e-4, max_lr=1.0, step_size_up=7, mode="exp_range", gamma=0.9),
    "three phases": lambda k: partial(
        OneCycleLR, max_lr="auto", total_steps=400, three_phase=True, div_factor=9.0 + k, final_div_factor=99.0 + k
    ),
    "together": lambda k: [partial(ExponentialLR, gamma=0.99 - k / 100), partial(StepLR, step_size=9, gamma=0.5)],
    "cosine again": lambda k: partial(CosineAnnealingLR, T_max=30, eta_min=k / 1e3),
    "multistep": lambda k: partial(MultiStepLR, milestones=[3, 9], gamma=0.1 + k / 10),
    "poly": lambda k: partial(PolynomialLR, total_iters=150, power=0.5 + k),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("name", NAMES)
def test_any_scheduler_of_torch(name: str, make: Any) -> None:
    optimizers = [optimizer_of(make, lr) for lr in (0.1, 0.2, 0.3, 0.1)]
    makes = [partial(Schedule, NAMES[name](k % 3)) for k in range(4)]
    stacked, solos = pair(makes, optimizers, 300)
    for index in range(300):
        assert_row(stacked.row(index), solos, optimizers, index)


def test_a_sequence() -> None:
    makes = [
        partial(
            Schedule,
            [partial(ConstantLR, factor=0.5), partial(CosineAnnealingLR, T_max="auto", eta_min=k / 1e3)],
            milestones=[20 + k % 2],
            warmup=5,
        )
        for k in range(4)
    ]
    optimizers = [optimizer_of(lr=0.1 + k) for k in range(4)]
    stacked, solos = pair(makes, optimizers, 100)
    for index in range(100):
        assert_row(stacked.row(index), solos, optimizers, index)


def test_a_momentum_that_only_one_member_cycles() -> None:
    optimizers = [optimizer_of(partial(SGD, momentum=momentum)) for momentum in (0.0, 0.9, 0.5)]
    stacked, solos = pair([partial(from_conf, "onecycle")] * 3, optimizers, 50)
    for index in range(50):
        row = stacked.row(index)
        assert row[0]["momentum"][0] == 0
        assert_row(row, solos, optimizers, index)


class Halves(LRScheduler):
    """A user's own, which reads the defaults and ties the groups to each other."""

    def get_lr(self) -> list[float]:
        return [self.optimizer.defaults["lr"] / 2**self.last_epoch + len(self.base_lrs)] * len(self.base_lrs)


class Own(Schedule):
    """A user's own schedule."""

    def row(self, index: int) -> list[dict[str, Any]]:
        return [{"lr": group["lr"] * 0.5} for group in super().row(index)]


def test_a_scheduler_and_a_schedule_of_the_user() -> None:
    optimizers = [optimizer_of(partial(SGD, lr=lr), lr) for lr in (0.1, 0.2, 0.1)]
    for make in (partial(Schedule, Halves), partial(Own, partial(ExponentialLR, gamma=0.9))):
        stacked, solos = pair([make] * 3, optimizers, 20)
        for index in range(20):
            assert_row(stacked.row(index), solos, optimizers, index)
        assert stacked.member(1).state_dict()["first"] == 0


def test_members_that_differ_in_numbers_are_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    get_lr = CosineAnnealingLR.get_lr

    def counted(self: Any) -> Any:
        nonlocal calls
        calls += 1
        return get_lr(self)

    monkeypatch.setattr(torchs.CosineAnnealingLR, "get_lr", counted)
    schedules = [
        bound(Schedule(partial(CosineAnnealingLR, T_max="auto", eta_min=k / 1e6)), optimizer_of(lr=0.1 + k), 200)
        for k in range(256)
    ]
    calls = 0
    stacked = stack_schedules(schedules)
    for index in range(200):
        assert len(stacked.row(index)[0]["lr"]) == 256
    assert calls <= 201


def test_a_tensor_is_the_same_object_while_it_holds() -> None:
    makes = [partial(from_conf, "step", scheduler={"step_size": size}) for size in (70, 100)]
    stacked, _ = pair(makes, [optimizer_of()] * 2, 400)
    lrs = [stacked.row(index)[0]["lr"] for index in range(400)]
    changes = [index for index in range(1, 400) if lrs[index] is not lrs[index - 1]]
    assert changes == [70, 100, 140, 200, 210, 280, 300, 350]
    assert all(stacked.row(index) is stacked.row(index) for index in (0, 399))


def test_betas_are_the_same_objects_while_they_hold() -> None:
    optimizers = [optimizer_of(MAKES["adam"])] * 2
    stacked, _ = pair([partial(from_conf, "onecycle", scheduler={"pct_start": 0.5})] * 2, optimizers, 3 * ROWS)
    rows = [stacked.row(index)[0] for index in range(3 * ROWS)]
    assert len({id(row["betas"][1]) for row in rows}) == 1  # only the first of them is cycled
    assert len({id(row["betas"][0]) for row in rows}) > ROWS
    still = stack_schedules([bound(Schedule(partial(StepLR, step_size=999)), optimizers[0], 200)] * 2)
    assert len({id(still.row(index)[0]["lr"]) for index in range(200)}) == 1


@pytest.mark.parametrize("at", [0, 5, ROWS - 1, ROWS, 200])
def test_keep_leaves_the_others_as_they_were(at: int) -> None:
    numbers = [NUMBERS["warmup_cosine"][k % 3] for k in range(7)]
    optimizers = [optimizer_of(lr=0.1 + k / 3) for k in range(7)]
    stacked, solos = pair([partial(from_conf, "warmup_cosine", **given) for given in numbers], optimizers, 300)
    for index in range(at):
        stacked.row(index)
    for left in ([6, 0, 3, 1], [1, 2]):  # positions among those that are left
        stacked.keep(torch.tensor(left))
        solos, optimizers = [solos[k] for k in left], [optimizers[k] for k in left]
        for index in range(at, 300):
            assert_row(stacked.row(index), solos, optimizers, index)
        assert stacked.member(0).state_dict()["start"] == solos[0].state_dict()["start"]


@pytest.mark.parametrize("option", ["cosine", "onecycle", "warmup_cosine", "multistep"])
def test_states_are_those_of_solo_runs(option: str) -> None:
    length, at = 2500, 1500
    makes = [partial(from_conf, option, by="iter", **NUMBERS[option][k % 3]) for k in range(4)]
    optimizers = [optimizer_of(lr=0.1 + k) for k in range(4)]
    stacked, solos = pair(makes, optimizers, length)
    for index in range(at + 1):
        stacked.row(index)
        for solo in solos:
            solo.row(index)
    states = [stacked.member(k).state_dict() for k in range(4)]
    assert states == [solo.state_dict() for solo in solos]
    assert states[0]["first"] > 0

    alone = bound(makes[2](), optimizers[2], length)
    alone.load_state_dict(states[2])
    again, _ = pair(makes, optimizers, length)
    for k, solo in enumerate(solos):
        again.member(k).load_state_dict(solo.state_dict())
    assert [again.member(k).state_dict() for k in range(4)] == states
    for index in range(at, length, 7):
        assert alone.row(index) == solos[2].row(index)
        assert_row(again.row(index), solos, optimizers, index)
    assert again.member(3).state_dict() == solos[3].state_dict()


def test_a_state_that_is_no_plain_data_is_stepped_to() -> None:
    def scheduler(optimizer: Optimizer) -> LRScheduler:
        made = ExponentialLR(optimizer, 0.999)
        made.note = lambda: None  # type: ignore[attr-defined]
        return made

    stacked, solos = pair([partial(Schedule, scheduler)] * 2, [optimizer_of()] * 2, 1500)
    stacked.row(1400)
    solos[1].load_state_dict(stacked.member(1).state_dict())
    assert member_of(stacked.row(1400)[0]["lr"], 1) == solos[1].row(1400)[0]["lr"]


def test_constant() -> None:
    stacked, _ = pair([partial(from_conf, "constant")] * 3, [optimizer_of()] * 3, 10)
    assert stacked.constant
    assert stacked.row(0) == stacked.row(99) == [{}, {}]
    assert stack_schedules([None, None]) is None


def test_what_cannot_be_stacked() -> None:
    def cosine(by: Any = "iter") -> Schedule:
        return bound(Schedule(partial(CosineAnnealingLR, T_max="auto"), by=by), optimizer_of(), 10)

    plateau = bound(Plateau(), optimizer_of(), 10)
    single = bound(Schedule(partial(StepLR, step_size=3), by="iter"), SGD([torch.nn.Parameter(torch.ones(1))]), 10)
    for others, said in (
        ([None], "of different kinds: Schedule, none"),
        ([plateau], "of different kinds: Plateau, Schedule"),
        ([cosine("epoch")], "different units: iter, epoch"),
        ([single], "different numbers of parameter groups: 2, 1"),
    ):
        with pytest.raises(Unfusable, match=said):
            stack_schedules([cosine(), *others])
    with pytest.raises(Unfusable, match="metrics to monitor: None, val/loss"):
        stack_schedules([plateau, bound(Plateau("val/loss"), optimizer_of(), 10)])
    with pytest.raises(IndexError):
        stack_schedules([cosine()]).row(-1)


@settings(max_examples=25)
@given(data=st.data(), option=st.sampled_from(sorted(NUMBERS)), length=st.integers(71, 150))
def test_any_members_in_any_order(data: st.DataObject, option: str, length: int) -> None:
    lrs = data.draw(st.lists(st.floats(1e-6, 10), min_size=1, max_size=6))
    numbers = [NUMBERS[option][data.draw(st.integers(0, 2))] for _ in lrs]
    makes = [partial(from_conf, option, **{**given, "by": "iter"}) for given in numbers]
    optimizers = [optimizer_of(lr=lr) for lr in lrs]
    stacked, solos = pair(makes, optimizers, length)
    for index in data.draw(st.lists(st.integers(0, length + 5), max_size=12)):
        assert_row(stacked.row(index), solos, optimizers, index)
    left = data.draw(st.lists(st.sampled_from(range(len(lrs))), min_size=1, unique=True))
    stacked.keep(torch.tensor(left))
    solos, optimizers = [solos[k] for k in left], [optimizers[k] for k in left]
    for index in data.draw(st.lists(st.integers(0, length + 5), max_size=12)):
        assert_row(stacked.row(index), solos, optimizers, index)


PLATEAUS = [
    {"factor": 0.5, "patience": 1},
    {"factor": 0.1, "patience": 0, "cooldown": 2},
    {"factor": 0.5, "patience": 2, "min_lr": 0.01},
]


def plateaus(lrs: Sequence[float]) -> list[Plateau]:
    return [
        bound(from_conf("plateau", mode="min", **given), optimizer_of(lr=lr), 9)
        for given, lr in zip(PLATEAUS, lrs, strict=True)
    ]


def test_plateau_equals_its_solo_runs() -> None:
    lrs = (0.1, 0.2, 0.4)
    stacked, solos = stack_schedules(plateaus(lrs)), plateaus(lrs)
    assert isinstance(stacked, StackedPlateau)
    assert (stacked.by, stacked.constant, stacked.monitor) == (None, False, None)
    noise = torch.Generator().manual_seed(0)
    optimizers = [optimizer_of(lr=lr) for lr in lrs]
    objects = set()
    for turn in range(30):
        if turn == 20:
            stacked.keep(torch.tensor([2, 0]))
            solos, optimizers = [solos[2], solos[0]], [optimizers[2], optimizers[0]]
        row = stacked.row(turn)
        objects.add(id(row[0]["lr"]))
        assert row is stacked.row(turn + 1)
        assert_row(row, solos, optimizers, turn)
        values = torch.rand(len(solos), generator=noise).tolist()
        stacked.observe(*values)
        for solo, value in zip(solos, values, strict=True):
            solo.observe(value)
    assert 3 < len(objects) < 25


def test_a_plateau_that_changes_nothing_keeps_its_tensors() -> None:
    stacked = stack_schedules(plateaus((0.1, 0.2, 0.4)))
    before: Tensor = stacked.row(0)[1]["lr"]  # type: ignore[assignment]
    stacked.observe(3.0, 2.0, 1.0)
    assert stacked.row(1)[1]["lr"] is before
    with pytest.raises(ValueError, match="zip"):
        stacked.observe(1.0)


def test_states_of_a_plateau_are_those_of_solo_runs() -> None:
    lrs = (0.1, 0.2, 0.4)
    stacked, solos = stack_schedules(plateaus(lrs)), plateaus(lrs)
    for turn in range(8):
        values = [1.0 + turn, 2.0, 3.0 - turn]
        stacked.observe(*values)
        for solo, value in zip(solos, values, strict=True):
            solo.observe(value)
    states = [stacked.member(k).state_dict() for k in range(3)]
    assert states == [solo.state_dict() for solo in solos]
    again = stack_schedules(plateaus(lrs))
    again.row(0)
    for k, state in enumerate(states):
        again.member(k).load_state_dict(state)
    optimizers = [optimizer_of(lr=lr) for lr in lrs]
    assert_row(again.row(8), solos, optimizers, 8)
    again.observe(9.0, 9.0, 9.0)
    for solo in solos:
        solo.observe(9.0)
    assert_row(again.row(9), solos, optimizers, 9)
