"""Windows, other numbers and several schedules: what cannot work is said, with the key that it is about."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adagrad, Adam, Rprop
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, OneCycleLR

from trainyard.errors import ConfigError
from trainyard.schedules import Plateau, Schedule, Several

COSINE = partial(CosineAnnealingLR, T_max="auto")


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("param", {"param": "momentums"}),
        ("param", {"param": None}),
        ("begin", {"begin": -1}),
        ("begin", {"begin": 1.5}),
        ("begin", {"begin": "auto"}),
        ("end", {"end": 0}),
        ("end", {"end": "epoch"}),
        ("end", {"begin": 5, "end": 5}),
        ("end", {"begin": 0.5, "end": 0.3}),
        ("convert_to_iter_based", {"by": "iter", "convert_to_iter_based": True}),
        ("convert_to_iter_based", {"convert_to_iter_based": 1}),
    ],
)
def test_what_no_run_takes(key: str, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Schedule(COSINE, **given)
    assert caught.value.key == key


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(ConfigError, match=r"lr, momentum, weight_decay. Did you mean 'weight_decay'\?"):
        Schedule(COSINE, param="weight_decy")
    with pytest.raises(ConfigError, match=r"Did you mean 'momentum'\?"):
        Plateau(param="momentun")


@pytest.mark.parametrize(
    ("make", "param", "found"),
    [
        (Adagrad, "momentum", "lr, weight_decay"),
        (Rprop, "momentum", "lr"),
        (Rprop, "weight_decay", "lr"),
    ],
)
@pytest.mark.parametrize("schedule", [partial(Schedule, COSINE), Plateau])
def test_an_optimizer_without_that_number(schedule: Any, make: Any, param: str, found: str) -> None:
    with pytest.raises(ConfigError, match=f"a numeric hyperparameter of this optimizer: {found}\\.") as caught:
        schedule(param=param).bind(make([torch.nn.Parameter(torch.ones(1))]), length=10)
    assert caught.value.key == "param"


@pytest.mark.parametrize(
    ("key", "schedule", "said"),
    [
        ("schedules.late.begin", {"late": Schedule(COSINE, begin=40)}, "in epochs is 40"),
        (
            "schedules.0.begin",
            [Schedule(COSINE, begin=8, by="epoch"), Schedule(COSINE, by="iter")],
            "length of the run in epochs is 8",
        ),
        (
            "schedules.0.begin",
            [Schedule(COSINE, begin=8, convert_to_iter_based=True)],
            "length of the run in epochs is 8",
        ),
        ("schedules.0.end", [Schedule(COSINE, begin=0.5, end=15)], "a value after begin=0.5"),
        ("schedules.0.warmup", [Schedule(COSINE, begin=10, end=20, warmup=10)], "less than 10"),
        (
            "schedules.0.warmup",
            [Schedule([COSINE, COSINE], milestones=[10], warmup=0.5)],
            "0.5 is invalid. Expected less than 10, .* In epochs, this warm-up is 20",
        ),
        ("schedules.0.milestones", [Schedule([COSINE, COSINE], milestones=[10], begin=10, end=20)], "the window"),
        (
            "schedules.1.param",
            [Schedule(COSINE), Schedule(COSINE, param="momentum")],
            "hyperparameter of this optimizer",
        ),
        ("schedules.a.scheduler.0", {"a": Schedule([partial(CosineAnnealingLR)], begin=9)}, "T_max"),
    ],
)
def test_what_does_not_fit_a_run_says_which_of_several(key: str, schedule: Any, said: str) -> None:
    optimizer = Adagrad([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(ConfigError, match=said) as caught:
        Several(schedule).bind(optimizer, length=40, epoch_length=5)
    assert caught.value.key == key


def test_a_cycle_of_the_momentum_beside_a_schedule_of_it() -> None:
    cycle = partial(OneCycleLR, max_lr="auto", total_steps="auto")
    momentum = Schedule(partial(ExponentialLR, gamma=0.9), param="momentum")
    for make in (partial(SGD, momentum=0.9), Adam):
        with pytest.raises(ConfigError, match="cycle_momentum: false") as caught:
            Several([Schedule(cycle), momentum]).bind(make([torch.nn.Parameter(torch.ones(1))]), length=9)
        assert caught.value.key == "schedules.0.scheduler"
    Several([Schedule(partial(cycle, cycle_momentum=False)), momentum]).bind(
        Adam([torch.nn.Parameter(torch.ones(1))]), length=9
    )


class Own(Schedule):
    """A user's own, whose rows are no plan's."""


@pytest.mark.parametrize("thing", [Plateau(), COSINE, Own(COSINE), "cosine"])
def test_only_schedules_are_several(thing: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Several({"rate": thing})
    assert caught.value.key == "schedules.rate"
    with pytest.raises(ConfigError, match="a mapping of names"):
        Several(Schedule(COSINE))


def test_epochs_by_iteration_need_their_length() -> None:
    with pytest.raises(ConfigError) as caught:
        Schedule(COSINE, by="epoch", convert_to_iter_based=True).bind(
            SGD([torch.nn.Parameter(torch.ones(1))]), length=10
        )
    assert caught.value.key == "convert_to_iter_based"
    schedule = Several([Schedule(COSINE, by="epoch"), Schedule(COSINE, by="iter")])
    with pytest.raises(ConfigError, match="has no length") as caught:
        schedule.bind(SGD([torch.nn.Parameter(torch.ones(1))]), length=10)
    assert caught.value.key == "schedules.0.by"
