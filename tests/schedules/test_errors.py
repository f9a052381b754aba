"""What cannot work is said, with the key that it is about."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adagrad
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from trainyard.errors import ConfigError
from trainyard.optim import Muon
from trainyard.schedules import Schedule, floors

COSINE = partial(CosineAnnealingLR, T_max="auto")
NAN, INF = float("nan"), float("inf")


def refused(key: str, *args: Any, **kwargs: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        Schedule(*args, **kwargs)
    assert caught.value.key == key
    return caught.value


def refused_by_bind(key: str, schedule: Schedule, length: Any = 100, make: Any = SGD) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        schedule.bind(make([torch.nn.Parameter(torch.ones(1))], lr=0.1), length=length)
    assert caught.value.key == key
    return caught.value


@pytest.mark.parametrize("by", ["step", "Epoch", 1, ""])
def test_by(by: Any) -> None:
    refused("by", COSINE, by=by)


def test_by_offers_the_nearest() -> None:
    assert "'epoch'" in str(refused("by", COSINE, by="epochs"))


@pytest.mark.parametrize("gamma", [0, -0.1, "0.1", None, NAN])
@pytest.mark.parametrize("make", [StepLR, MultiStepLR, ExponentialLR])
def test_gamma(make: Any, gamma: Any) -> None:
    refused("scheduler.gamma", partial(make, gamma=gamma))


@pytest.mark.parametrize("value", [-1e-9, NAN, INF, "0.1", [0.1, -0.1]])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((COSINE, "eta_min"), (partial(CosineAnnealingWarmRestarts, T_0=3), "eta_min")),
        *((partial(CyclicLR, max_lr=1.0), "base_lr"), (partial(CyclicLR, base_lr=0.0), "max_lr")),
        *((partial(floors.CosineAnnealingLR, T_max=3), "eta_min"), (floors.PolynomialLR, "eta_min")),
    ],
)
def test_a_scheduled_value_is_not_negative(make: Any, name: str, value: Any) -> None:
    refused(f"scheduler.{name}", partial(make, **{name: value}))
    Schedule(partial(make, **{name: 0}))


@pytest.mark.parametrize("value", [0, -1, 2.5, 1.0001, "all", None, True, NAN, INF])
@pytest.mark.parametrize(
    ("make", "name"), [(CosineAnnealingLR, "T_max"), (StepLR, "step_size"), (ConstantLR, "total_iters")]
)
def test_durations(make: Any, name: str, value: Any) -> None:
    refused(f"scheduler.{name}", partial(make, **{name: value}))


def test_the_key_says_which_of_several() -> None:
    refused("scheduler.1.T_max", [COSINE, partial(CosineAnnealingLR, T_max=0)], milestones=[5])


def test_an_argument_that_it_does_not_take() -> None:
    assert "'T_max'" in str(refused("scheduler", partial(CosineAnnealingLR, t_max=10)))
    refused("scheduler", partial(CosineAnnealingLR, T_max=10, last_epoch=3))


@pytest.mark.parametrize("value", ["low", "1e-3x"])
def test_words_for_numbers(value: str) -> None:
    refused("scheduler.eta_min", partial(CosineAnnealingLR, T_max=5, eta_min=value))


def test_auto_where_the_run_does_not_know() -> None:
    refused("scheduler.eta_min", partial(CosineAnnealingLR, T_max=10, eta_min="auto"))


@pytest.mark.parametrize("thing", [SGD, "cosine", 3, partial(dict, a=1), partial(torch.nn.Linear, 1, 1), {}])
def test_not_a_scheduler(thing: Any) -> None:
    refused("scheduler", thing)


def test_plateau_has_its_own_option() -> None:
    assert "schedule=plateau" in str(refused("scheduler", partial(ReduceLROnPlateau)))


def test_a_function_that_makes_no_scheduler() -> None:
    refused_by_bind("scheduler", Schedule(lambda optimizer: 3))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "milestones", [[5, 5], [9, 3], [0.5, 0.2], [0.5, 0.5], [-1, 4], [1.5, 4], ["5", 6], [NAN, 3], 5, "56"]
)
def test_milestones_of_a_sequence(milestones: Any) -> None:
    refused("milestones", [COSINE, COSINE, COSINE], milestones=milestones)


@pytest.mark.parametrize("milestones", [[], [1], [1, 2, 3]])
def test_the_number_of_milestones(milestones: Any) -> None:
    refused("milestones", [COSINE, COSINE, COSINE], milestones=milestones)


@pytest.mark.parametrize("milestones", [[0, 10], [30, 30], [60, 30], [-3], [0.0], "auto"])
def test_milestones_of_multistep(milestones: Any) -> None:
    refused("scheduler.milestones", partial(MultiStepLR, milestones=milestones))


def test_milestones_need_several_schedulers() -> None:
    refused("milestones", COSINE, milestones=[5])


def test_a_part_that_would_never_begin() -> None:
    schedule = Schedule([COSINE, COSINE], milestones=[100])
    refused_by_bind("milestones", schedule, 100)
    schedule.bind(SGD([torch.nn.Parameter(torch.ones(1))]), length=101)


def test_whole_numbers_and_shares_are_compared_once_the_length_is_known() -> None:
    schedule = Schedule([COSINE, COSINE, COSINE], milestones=[30, 0.5])
    schedule.bind(SGD([torch.nn.Parameter(torch.ones(1))]), length=100)
    refused_by_bind("milestones", schedule, 60)
    refused_by_bind("milestones", schedule, 40)


@pytest.mark.parametrize("warmup", [-1, 1.5, "auto", None, True])
def test_warmup(warmup: Any) -> None:
    refused("warmup", COSINE, warmup=warmup)


@pytest.mark.parametrize("factor", [0, -0.1, 1.5, "x"])
def test_warmup_factor(factor: Any) -> None:
    refused("warmup_factor", COSINE, warmup=1, warmup_factor=factor)


def test_a_warm_up_that_leaves_nothing() -> None:
    refused_by_bind("warmup", Schedule(COSINE, warmup=100))
    refused_by_bind("warmup", Schedule([COSINE, COSINE], milestones=[10], warmup=10))
    refused("warmup", [COSINE, COSINE], warmup=5)


def test_what_lies_beyond_the_end_is_harmless() -> None:
    for made in (
        partial(MultiStepLR, milestones=[30, 60, 9000]),
        partial(CosineAnnealingLR, T_max=10_000),
        partial(OneCycleLR, max_lr="auto", total_steps=10_000, cycle_momentum=False),
    ):
        schedule = Schedule(made)
        schedule.bind(SGD([torch.nn.Parameter(torch.ones(1))]), length=40)
        assert len(schedule.row(39)) == 1


def test_onecycle_shorter_than_the_run() -> None:
    made = partial(OneCycleLR, max_lr="auto", total_steps=99, cycle_momentum="auto")
    refused_by_bind("scheduler.total_steps", Schedule(made))


def test_onecycle_leaves_the_momentum_of_muon() -> None:
    """Only some of its groups have a momentum, and the others have betas."""
    optimizer = Muon([torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))])
    schedule = Schedule(partial(OneCycleLR, max_lr="auto", total_steps="auto", cycle_momentum="auto"))
    schedule.bind(optimizer, length=100)
    assert [set(group) for group in schedule.row(30)] == [{"lr"}, {"lr"}]


def test_what_only_torch_knows() -> None:
    made = partial(OneCycleLR, max_lr="auto", total_steps="auto", cycle_momentum=True)
    assert "momentum" in str(refused_by_bind("scheduler", Schedule(made), make=Adagrad))
    refused_by_bind("scheduler", Schedule(partial(CosineAnnealingLR)))
    made = partial(OneCycleLR, max_lr=0.1, total_steps="auto", pct_start=0.1, cycle_momentum=False)
    assert "zero" in str(refused_by_bind("scheduler", Schedule(made), 10))


def test_a_division_by_zero_in_a_function() -> None:
    error = refused_by_bind("scheduler", Schedule(partial(LambdaLR, lr_lambda=lambda step: 1 / step)))
    assert "LambdaLR says: " in str(error)
    assert "phase" not in str(error)


@pytest.mark.parametrize("length", [0, -5, 2.5, "10"])
def test_length(length: Any) -> None:
    refused_by_bind("length", Schedule(COSINE), length)


def test_an_argument_that_torch_does_not_name_as_it_is_spelt() -> None:
    """LinearLR speaks of a "starting multiplicative factor"; without which argument it is taken tells the key."""
    error = refused_by_bind("scheduler.start_factor", Schedule(partial(LinearLR, total_iters=5, start_factor=-1)))
    assert "Starting multiplicative factor" in str(error)
