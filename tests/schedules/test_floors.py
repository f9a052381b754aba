"""Schedulers that fall to a floor."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD, lr_scheduler

from trainyard.errors import ConfigError
from trainyard.fused.schedule import stack_schedules
from trainyard.schedules import CosineAnnealingLR, Plateau, PolynomialLR, Schedule

LENGTH = 12


def optimizer() -> SGD:
    return SGD([{"params": [torch.zeros(1)], "lr": 1.0}, {"params": [torch.zeros(1)], "lr": 0.1}], lr=1.0)


def rates(make: Any, length: int = LENGTH, **arguments: Any) -> list[list[float]]:
    schedule = Schedule(partial(make, **arguments), by="epoch")
    schedule.bind(optimizer(), length=length)
    return [[group["lr"] for group in schedule.row(index)] for index in range(length)]


@pytest.mark.parametrize(
    ("make", "torchs", "numbers"),
    [
        (CosineAnnealingLR, lr_scheduler.CosineAnnealingLR, {"T_max": 5, "eta_min": 0.01}),
        (CosineAnnealingLR, lr_scheduler.CosineAnnealingLR, {"T_max": "auto"}),
        (PolynomialLR, lr_scheduler.PolynomialLR, {"total_iters": 0.5, "power": 0.9}),
    ],
)
def test_without_a_share_they_are_torchs_to_the_bit(make: Any, torchs: Any, numbers: Any) -> None:
    assert rates(make, **numbers) == rates(torchs, **numbers)


@pytest.mark.parametrize(("make", "name"), [(CosineAnnealingLR, "T_max"), (PolynomialLR, "total_iters")])
def test_a_share_of_each_groups_own_rate(make: Any, name: str) -> None:
    found = rates(make, **{name: LENGTH - 1, "eta_min_ratio": 0.05})
    assert found[0] == [1.0, 0.1]
    assert found[-1] == pytest.approx([0.05, 0.005])
    for one, other in found:
        assert other == pytest.approx(one / 10)


def test_a_cosine_comes_back_from_its_floor() -> None:
    found = rates(CosineAnnealingLR, T_max=3, eta_min_ratio=0.1)
    assert [one for one, _ in found[:7]] == pytest.approx([1.0, 0.775, 0.325, 0.1, 0.325, 0.775, 1.0])


def test_a_polynomial_stays_at_its_floor() -> None:
    found = rates(PolynomialLR, total_iters=4, eta_min=0.02)
    assert [one for one, _ in found[:6]] == pytest.approx([1.0, 0.755, 0.51, 0.265, 0.02, 0.02])


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ({"eta_min_ratio": 2}, "eta_min_ratio must be a number in \\[0, 1\\], not 2"),
        ({"eta_min_ratio": "x"}, "not 'x'"),
        ({"eta_min_ratio": 0.1, "eta_min": 0.1}, "replaces eta_min"),
    ],
)
@pytest.mark.parametrize("make", [CosineAnnealingLR, PolynomialLR])
def test_what_is_no_share(make: Any, numbers: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        rates(make, **numbers, **{"T_max" if make is CosineAnnealingLR else "total_iters": 4})


@pytest.mark.parametrize("make", [CosineAnnealingLR, PolynomialLR])
@pytest.mark.parametrize("name", ["eta_min", "eta_min_ratio"])
def test_a_stack_has_the_rates_of_its_members(make: Any, name: str) -> None:
    members = []
    for floor in (0.0, 0.01, 0.2):
        schedule = Schedule(partial(make, **{name: floor}, **{"T_max" if "Cos" in make.__name__ else "total_iters": 9}))
        schedule.bind(optimizer(), length=LENGTH)
        members.append(schedule)
    stacked = stack_schedules(members)
    assert stacked is not None
    for index in range(LENGTH):
        expected = [[member.row(index)[group]["lr"] for member in members] for group in range(2)]
        assert [row["lr"].tolist() for row in stacked.row(index)] == expected


def warmed(warmup: float, **numbers: Any) -> Plateau:
    plateau = Plateau(factor=0.5, patience=0, warmup=warmup, warmup_factor=0.2, by="iter", **numbers)
    plateau.bind(optimizer(), length=LENGTH)
    return plateau


@pytest.mark.parametrize("warmup", [4, 0.34])
def test_a_warm_up_multiplies_what_the_plateau_has_set(warmup: float) -> None:
    plateau = warmed(warmup)
    assert [plateau.row(index)[0]["lr"] for index in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    for value in (1.0, 0.0):
        plateau.observe(value)
    assert [plateau.row(index)[1]["lr"] for index in (0, 2, 4, 9)] == pytest.approx([0.01, 0.03, 0.05, 0.05])


def test_a_stack_of_plateaus_with_warm_ups() -> None:
    members = [warmed(4), warmed(2)]
    stacked = stack_schedules(members)
    assert stacked is not None
    for index in (0, 1, 2, 3, 4, 5):
        assert stacked.row(index)[0]["lr"].tolist() == [member.row(index)[0]["lr"] for member in members]


def test_a_warm_up_as_long_as_the_run() -> None:
    with pytest.raises(ConfigError, match=r"warmup: 12 is invalid. Expected less than 12"):
        warmed(12)
