"""Windows, other numbers than the learning rate, several schedules: against torch's schedulers stepped by hand."""

from __future__ import annotations

import copy
import doctest
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
    StepLR,
)

import trainyard.schedules.several
from trainyard.optim import Lion
from trainyard.schedules import Schedule, Several
from trainyard.schedules.schedule import BLOCK

OPTIMIZERS: dict[str, Any] = {
    "sgd": partial(SGD, momentum=0.9, weight_decay=1e-2),
    "rmsprop": partial(RMSprop, momentum=0.5, weight_decay=0.02),
    "adam": partial(Adam, betas=(0.8, 0.99), weight_decay=0.3),
    "adamw": partial(AdamW, betas=(0.9, 0.95), weight_decay=0.05),
    "lion": partial(Lion, betas=(0.9, 0.98), weight_decay=0.1),
}
NUMBERS = ("lr", "momentum", "betas", "weight_decay")


def optimizer_of(name: str = "sgd") -> Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in (0.1, 0.3)]
    groups[1]["weight_decay"] = 0.2
    return OPTIMIZERS[name](groups)


@dataclass
class Hand:
    """A scheduler of torch's as a user steps it: made at `first`, stepped every `stride` rows, into `last` at most."""

    make: Callable[[Optimizer], LRScheduler]
    param: str = "lr"
    first: int = 0
    last: int = 10**9
    stride: int = 1


def number(group: dict[str, Any], param: str) -> float:
    if param == "momentum":
        return group["momentum"] if "momentum" in group else group["betas"][0]
    return group[param]


def by_hand(optimizer: Optimizer, hands: Sequence[Hand], rows: int) -> list[list[dict[str, Any]]]:
    """The groups' numbers in each row. What is no learning rate is that of an SGD beside, and copied."""
    beside = {
        hand.param: SGD(
            [{"params": group["params"], "lr": number(group, hand.param)} for group in optimizer.param_groups]
        )
        for hand in hands
        if hand.param != "lr"
    } | {"lr": optimizer}
    made: dict[int, LRScheduler] = {}
    table = []
    for row in range(rows):
        for index, scheduler in made.items():
            hand = hands[index]
            if row <= hand.last and (row - hand.first) % hand.stride == 0:
                scheduler.optimizer.step()
                scheduler.step()
        for index, hand in enumerate(hands):
            if hand.first == row:
                made[index] = hand.make(beside[hand.param])
        for param, carrier in beside.items():
            for group, held in zip(optimizer.param_groups, carrier.param_groups, strict=True):
                if param == "momentum" and "betas" in group:
                    group["betas"] = (held["lr"], group["betas"][1])
                elif param != "lr":
                    group[param] = held["lr"]
        table.append([{key: group[key] for key in NUMBERS if key in group} for group in optimizer.param_groups])
    return table


def numbers_of(name: str) -> list[dict[str, Any]]:
    return [{key: group[key] for key in NUMBERS if key in group} for group in optimizer_of(name).param_groups]


def assert_rows(schedule: Schedule, hands: Sequence[Hand], rows: int, name: str = "sgd", **bound: Any) -> None:
    schedule.bind(optimizer_of(name), length=rows, **bound)
    before = numbers_of(name)
    for row, expected in enumerate(by_hand(optimizer_of(name), hands, rows)):
        after = [{**held, **values} for held, values in zip(before, schedule.row(row), strict=True)]
        assert after == expected, row


# --- One window


MAKES: dict[str, Callable[[int], Any]] = {
    "linear": lambda n: partial(LinearLR, start_factor=0.1, total_iters=n),
    "cosine": lambda n: partial(CosineAnnealingLR, T_max=n, eta_min=1e-3),
    "poly": lambda n: partial(PolynomialLR, total_iters=n, power=2.0),
    "exponential": lambda n: partial(ExponentialLR, gamma=0.9),
    "step": lambda n: partial(StepLR, step_size=max(1, n // 3)),
    "restarts": lambda n: partial(CosineAnnealingWarmRestarts, T_0=max(1, n // 2)),
    "cyclic": lambda n: partial(CyclicLR, base_lr=1e-3, max_lr=0.9, step_size_up=3, cycle_momentum=False),
    "onecycle": lambda n: partial(OneCycleLR, max_lr=0.7, total_steps=n + 120, cycle_momentum=False),
    "lambda": lambda n: partial(LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
}


@settings(max_examples=80)
@given(
    kind=st.sampled_from(sorted(MAKES)),
    name=st.sampled_from(sorted(OPTIMIZERS)),
    param=st.sampled_from(["lr", "momentum", "weight_decay"]),
    length=st.integers(2, 60),
    data=st.data(),
)
def test_any_window_is_torchs_scheduler_inside_and_flat_outside(
    kind: str, name: str, param: str, length: int, data: st.DataObject
) -> None:
    begin = data.draw(st.integers(0, length - 1))
    end = data.draw(st.none() | st.integers(begin + 1, 2 * length))
    make = MAKES[kind](data.draw(st.integers(1, 60)))
    schedule = Schedule(make, param=param, begin=begin, end=end)
    last = 10**9 if end is None else end - (kind == "onecycle")
    assert_rows(schedule, [Hand(make, param, begin, last)], length, name)

    held = [[number({**base, **row}, param) for base, row in zip(numbers_of(name), schedule.row(index), strict=True)]
            for index in range(length)]  # fmt: skip
    untouched = [number(group, param) for group in numbers_of(name)]
    assert all(values == untouched for values in held[:begin])
    assert all(values == held[min(last, length - 1)] for values in held[last:])
    key = {"momentum": "betas" if "betas" in numbers_of(name)[0] else "momentum"}.get(param, param)
    assert all(set(group) == {key} for index in range(length) for group in schedule.row(index))


def test_shares_and_auto_are_of_the_run_and_of_the_window() -> None:
    schedule = Schedule(partial(LinearLR, start_factor=0.1, total_iters="auto"), begin=0.25, end=0.75)
    assert_rows(schedule, [Hand(partial(LinearLR, start_factor=0.1, total_iters=20), first=10, last=30)], 40)
    assert schedule.row(30)[0]["lr"] == pytest.approx(0.1, rel=1e-12)  # it arrives
    schedule = Schedule(partial(MultiStepLR, milestones=[0.5]), begin=10, end=30)
    assert_rows(schedule, [Hand(partial(MultiStepLR, milestones=[10]), first=10, last=30)], 40)
    schedule = Schedule(partial(CosineAnnealingLR, T_max="auto"), begin=15)
    assert_rows(schedule, [Hand(partial(CosineAnnealingLR, T_max=25), first=15)], 40)


def test_a_cycle_ends_where_the_window_does_and_never_below_nothing() -> None:
    cycle = partial(OneCycleLR, max_lr="auto", total_steps="auto", anneal_strategy="linear", cycle_momentum=False)
    schedule = Schedule(cycle, begin=5, end=25)
    schedule.bind(optimizer_of(), length=40)
    values = [schedule.row(row)[0]["lr"] for row in range(40)]
    assert min(values) > 0
    assert set(values[24:]) == {values[24]}
    assert values[24] == pytest.approx(0.1 / 25 / 1e4)


def test_a_window_may_hold_a_warm_up_and_a_sequence() -> None:
    schedule = Schedule(partial(CosineAnnealingLR, T_max="auto"), warmup=4, begin=6, end=26, param="weight_decay")

    def make(optimizer: Optimizer) -> LRScheduler:
        parts = [LinearLR(optimizer, 1e-3, total_iters=4), CosineAnnealingLR(optimizer, 16)]
        return SequentialLR(optimizer, parts, [4])

    assert_rows(schedule, [Hand(make, "weight_decay", 6, 26)], 40)


def test_a_window_longer_than_the_run_is_never_through() -> None:
    schedule = Schedule(partial(CosineAnnealingLR, T_max="auto"), begin=10, end=1000)
    assert_rows(schedule, [Hand(partial(CosineAnnealingLR, T_max=990), first=10)], 40)


def test_shares_that_round_to_nothing_leave_nothing() -> None:
    schedule = Schedule(partial(ExponentialLR, gamma=0.5), begin=0.1, end=0.11)
    schedule.bind(optimizer_of(), length=20)
    assert schedule.constant
    assert schedule.row(19) == [{}, {}]


# --- Several


def test_a_warm_up_by_iteration_then_a_cosine_by_epoch_and_weight_decay_on_its_own() -> None:
    schedule = Several(
        {
            "warmup": Schedule(partial(LinearLR, start_factor=1e-3, total_iters="auto"), end=100, by="iter"),
            "cosine": Schedule(partial(CosineAnnealingLR, T_max="auto"), begin=2, by="epoch"),
            "decay": Schedule(partial(CosineAnnealingLR, T_max="auto"), param="weight_decay", by="epoch"),
        }
    )
    assert schedule.by == "iter"
    hands = [
        Hand(partial(LinearLR, start_factor=1e-3, total_iters=100), last=100),
        Hand(partial(CosineAnnealingLR, T_max=10), first=100, stride=50),
        Hand(partial(CosineAnnealingLR, T_max=12), "weight_decay", stride=50),
    ]
    assert_rows(schedule, hands, 600, epoch_length=50)
    assert schedule.row(100)[0]["lr"] == pytest.approx(0.1, rel=1e-9)
    assert schedule.row(301) is schedule.row(349)  # nothing changes within an epoch


@pytest.mark.parametrize("last", [10, 30, 45])
def test_two_over_one_stretch_multiply_as_in_a_chained_scheduler(last: int) -> None:
    warmup, drops = (partial(LinearLR, start_factor=0.01, total_iters=last), partial(MultiStepLR, milestones=[2, 5]))
    schedule = Several([Schedule(warmup, end=last, by="iter"), Schedule(drops, end=6, by="epoch")])
    assert_rows(schedule, [Hand(warmup, last=last), Hand(drops, stride=10, last=60)], 70, epoch_length=10)
    assert schedule.row(69)[0]["lr"] == pytest.approx(0.1 * 0.1**2)


def test_a_later_one_begins_where_the_number_was_left() -> None:
    first, second = partial(ExponentialLR, gamma=0.8), partial(CosineAnnealingLR, T_max=10)
    schedule = Several([Schedule(first, end=7), Schedule(second, begin=12, end=22)])
    assert schedule.by is None
    assert_rows(schedule, [Hand(first, last=7), Hand(second, first=12, last=22)], 30)
    assert schedule.row(12) == schedule.row(7)
    assert schedule.row(29)[1]["lr"] == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_three_numbers_at_once(name: str) -> None:
    rate, momentum = (
        partial(PolynomialLR, total_iters=40, power=0.9),
        partial(LinearLR, start_factor=0.7, total_iters=9),
    )
    decay = partial(StepLR, step_size=15, gamma=0.5)
    schedules = [Schedule(rate), Schedule(momentum, param="momentum"), Schedule(decay, param="weight_decay", begin=4)]
    hands = [Hand(rate), Hand(momentum, "momentum"), Hand(decay, "weight_decay", 4)]
    assert_rows(Several(schedules), hands, 40, name)
    assert_rows(Several([Several(schedules[:2]), None, Several({"decay": schedules[2]})]), hands, 40, name)


@pytest.mark.parametrize(("unit", "stride"), [("epoch", 5), ("iter", 1)])
def test_one_without_a_unit_counts_as_the_loop_does(unit: Any, stride: int) -> None:
    free, iterations = partial(ExponentialLR, gamma=0.9), partial(StepLR, step_size=4)
    schedule = Several([Schedule(free), Schedule(iterations, param="momentum", by="iter")])
    hands = [Hand(free, stride=stride), Hand(iterations, "momentum")]
    assert_rows(schedule, hands, 32, unit=unit, epoch_length=5)


def test_one_unit_is_kept_and_none_is_constant() -> None:
    rate = partial(ExponentialLR, gamma=0.9)
    assert Several([Schedule(rate, by="epoch"), Schedule(rate, by="epoch")]).by == "epoch"
    assert Several([Schedule(rate), Schedule(rate)]).by is None
    empty = Several({"none": Schedule(), "gone": None})
    assert empty.constant
    empty.bind(optimizer_of(), length=5)
    assert empty.row(3) == [{}, {}]


# --- Epochs as iterations


def test_a_schedule_given_by_epoch_may_be_stepped_by_iteration() -> None:
    n = 7
    for given_as, as_iterations in (
        (partial(CosineAnnealingLR, T_max=8), partial(CosineAnnealingLR, T_max=8 * n)),
        (partial(CosineAnnealingLR, T_max="auto"), partial(CosineAnnealingLR, T_max=12 * n)),
        (partial(MultiStepLR, milestones=[3, 0.5]), partial(MultiStepLR, milestones=[3 * n, 6 * n])),
        (partial(StepLR, step_size=3), partial(StepLR, step_size=3 * n)),
        (partial(LinearLR), partial(LinearLR, total_iters=5 * n)),  # torch's default is in epochs too
        (partial(PolynomialLR, total_iters=4.0), partial(PolynomialLR, total_iters=4 * n)),
        (partial(CosineAnnealingWarmRestarts, T_0=2), partial(CosineAnnealingWarmRestarts, T_0=2 * n)),
        (partial(ExponentialLR, gamma=0.8), partial(ExponentialLR, gamma=0.8 ** (1 / n))),
        (partial(LambdaLR, lr_lambda=lambda i: 0.9**i), partial(LambdaLR, lr_lambda=lambda i: 0.9**i)),
    ):  # fmt: skip
        schedule = Schedule(given_as, by="epoch", convert_to_iter_based=True)
        assert schedule.by == "iter"
        assert_rows(schedule, [Hand(as_iterations)], 12 * n, epoch_length=n)


def test_windows_warm_ups_and_milestones_are_converted_too() -> None:
    n = 5
    rate = Schedule(partial(CosineAnnealingLR, T_max="auto"), begin=2, end=8, convert_to_iter_based=True)
    assert_rows(rate, [Hand(partial(CosineAnnealingLR, T_max=30), first=10, last=40)], 60, epoch_length=n)

    parts = [partial(ConstantLR, factor=0.5, total_iters=99), partial(LinearLR, total_iters="auto")]
    schedule = Schedule(parts, milestones=[6], warmup=2, by="epoch", convert_to_iter_based=True)

    def make(o: Optimizer) -> LRScheduler:
        turns = [LinearLR(o, 1e-3, total_iters=10), ConstantLR(o, 0.5, total_iters=495), LinearLR(o, total_iters=30)]
        return SequentialLR(o, turns, [10, 30])

    assert_rows(schedule, [Hand(make)], 60, epoch_length=n)


def test_where_the_loop_counts_iterations_there_is_nothing_to_convert() -> None:
    rate = partial(StepLR, step_size=3)
    assert_rows(Schedule(rate, convert_to_iter_based=True), [Hand(rate)], 12, unit="iter", epoch_length=4)


def test_an_epochs_worth_of_steps_makes_what_an_epoch_makes() -> None:
    converted = Schedule(partial(ExponentialLR, gamma=0.5), by="epoch", convert_to_iter_based=True)
    converted.bind(optimizer_of(), length=30, epoch_length=10)
    assert [converted.row(row)[0]["lr"] for row in (10, 20)] == pytest.approx([0.05, 0.025])


# --- However the rows are asked for


LENGTH = 2 * BLOCK + 300


def bound(schedule: Any, **changes: Any) -> Any:
    schedule.bind(optimizer_of(), **({"length": LENGTH, "unit": "iter", "epoch_length": 90} | changes))
    return schedule


def mixed() -> Several:
    cycle = partial(CyclicLR, base_lr=0.5, max_lr=0.9, step_size_up=90, cycle_momentum=False)
    two = [partial(ExponentialLR, gamma=0.999), partial(StepLR, step_size=9)]
    return bound(
        Several(
            {
                "warmup": Schedule(partial(LinearLR, start_factor=0.1, total_iters="auto"), end=700, by="iter"),
                "drops": Schedule(partial(MultiStepLR, milestones=[5, 9, 20]), by="epoch"),
                "late": Schedule(partial(CosineAnnealingLR, T_max="auto"), param="weight_decay", begin=0.6, by="epoch"),
                "cycle": Schedule(cycle, param="momentum", by="iter"),
                "middle": Schedule(two, begin=800, end=1500, by="iter"),
            }
        )
    )


TABLE: list[Any] = []


def table() -> list[Any]:
    if not TABLE:
        schedule = mixed()
        TABLE.extend(copy.deepcopy(schedule.row(row)) for row in range(LENGTH))
    return TABLE


def saved(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@settings(max_examples=15)
@given(stop=st.integers(0, LENGTH - 1), more=st.lists(st.integers(0, LENGTH + 9), max_size=4))
def test_a_resumed_table_goes_on_and_rows_may_be_asked_for_in_any_order(stop: int, more: list[int]) -> None:
    first, second = mixed(), mixed()
    first.row(stop)
    second.row(more[0] if more else 0)
    second.load_state_dict(saved(first.state_dict()))
    for row in (stop, *more):
        assert second.row(row) == first.row(row) == table()[min(row, LENGTH - 1)]


def test_a_change_to_a_schedule_that_had_not_begun_is_seen() -> None:
    def made(eta_min: float, begin: int = 1800) -> Schedule:
        return bound(Schedule(partial(CosineAnnealingLR, T_max="auto", eta_min=eta_min), begin=begin, by="iter"))

    before = made(0.0)
    before.row(100)
    for changed in ({"eta_min": 0.01}, {"eta_min": 0.0, "begin": 1900}):
        after, fresh = made(**changed), made(**changed)
        after.load_state_dict(saved(before.state_dict()))
        assert after.row(2000) == fresh.row(2000) != before.row(2000)


def test_a_later_scheduler_whose_state_is_no_plain_data() -> None:
    def made() -> Schedule:
        def scheduler(optimizer: Optimizer) -> LRScheduler:
            it = ExponentialLR(optimizer, 0.999)
            it.note = lambda: None  # type: ignore[attr-defined]
            return it

        return bound(Schedule(scheduler, begin=1500, by="iter"))

    first, second = made(), made()
    first.row(1400)
    second.load_state_dict(saved(first.state_dict()))
    assert second.row(2000) == first.row(2000)


def test_the_examples_run() -> None:
    assert doctest.testmod(trainyard.schedules.several).failed == 0
