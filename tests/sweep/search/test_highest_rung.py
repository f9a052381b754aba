"""The rung that a sampler learns from: the highest one that enough trials have reached."""

from __future__ import annotations

import math
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from trainyard.errors import ConfigError
from trainyard.sweep.proposers.highest_rung import at_highest_rung
from trainyard.sweep.proposers.sampling import SamplerSource
from trainyard.sweep.proposers.search_settings import SearchSettings
from trainyard.sweep.proposers.space import Space
from trainyard.sweep.proposers.trials import Trial, TrialState

LINE = "optim.lr=interval(0.0,1.0)"


def trial(index: int, reports: dict[int, float], state: TrialState = "paused", result: float | None = None) -> Trial:
    return Trial(index, index, (f"optim.lr={index / 10}",), {}, state, reports, result)


TRIALS = [
    trial(0, {1: 0.5, 3: 0.4}, "done", 0.1),
    trial(1, {1: 0.6, 3: 0.3}),
    trial(2, {1: 0.7}, "pruned"),
    trial(3, {1: 0.2, 3: math.nan}, "running"),
    trial(4, {1: 0.1}, "failed"),
    trial(5, {}, "running"),
    trial(6, {}, "failed"),
]


@pytest.mark.parametrize(
    ("least", "whole", "seen", "is_end"),
    [
        (1, 0, {0: 0.1, 5: None}, True),
        (2, 0, {0: 0.4, 1: 0.3, 3: math.nan, 5: None}, False),
        (4, 0, {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.2, 5: None}, False),
        (9, 0, {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.2, 5: None}, False),
        (9, 8, {0: 0.1, 5: None}, True),
    ],
)
def test_the_rung_is_the_highest_one_that_enough_trials_have_reached(
    least: int, whole: int, seen: dict[int, float | None], is_end: bool
) -> None:
    found, at_end = at_highest_rung(TRIALS, least, whole)
    assert {each.index: each.result for each in found} == pytest.approx(seen, nan_ok=True)
    assert [each.state for each in found] == ["running" if each.result is None else "done" for each in found]
    assert at_end is is_end


def test_without_trials_nothing_is_seen() -> None:
    assert at_highest_rung([], 3) == ([], True)


def test_a_sampler_sees_the_values_of_that_rung_and_other_searches_only_at_the_end(hydra: Any) -> None:
    from optuna.distributions import FloatDistribution
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState as State
    from optuna.trial import create_trial

    loader, config = hydra
    earlier = [create_trial(value=0.9, params={"optim.lr": 0.9}, distributions={"optim.lr": FloatDistribution(0, 1)})]

    def seen(least: int) -> list[tuple[State, float | None]]:
        source = SamplerSource(
            Space([LINE], {}, loader, config), lambda seed: TPESampler(seed=seed), at_rung=least, earlier=earlier
        )
        return [(each.state, each.value) for each in source.study(TRIALS).trials]

    assert seen(2) == [(State.COMPLETE, 0.9), (State.COMPLETE, 0.1), (State.RUNNING, None)]
    assert seen(3) == [
        (State.COMPLETE, 0.4),
        (State.COMPLETE, 0.3),
        (State.COMPLETE, math.inf),
        (State.RUNNING, None),
    ]


def node(name: str) -> DictConfig:
    target = "trainyard.sweep.proposers.pruners" if name in ("Asha", "Hyperband") else "optuna.pruners"
    return OmegaConf.create({"_target_": f"{target}.{name}", **({} if name == "Asha" else {"last": 9})})


@pytest.mark.parametrize(
    ("changed", "learns"),
    [
        ({"pruner": node("Asha")}, "rung"),
        ({"pruner": node("Hyperband")}, "rung"),
        ({"pruner": node("Asha"), "learn_from": "all"}, "all"),
        ({"pruner": node("Asha"), "sampler": {"_target_": "optuna.samplers.RandomSampler", "seed": 0}}, "all"),
        ({"pruner": node("Asha"), "constraints": ["model/parameters <= 10"]}, "all"),
        ({"pruner": node("MedianPruner")}, "all"),
        ({}, "all"),
    ],
)
def test_tpe_learns_from_a_rung_where_there_are_some(
    hydra: Any, settings_of: Any, changed: dict[str, Any], learns: str
) -> None:
    _, config = hydra
    settings: SearchSettings = settings_of(config, **changed)
    assert settings.learn_from == learns


def test_a_search_without_rungs_cannot_learn_from_one(hydra: Any, settings_of: Any) -> None:
    _, config = hydra
    with pytest.raises(ConfigError) as error:
        settings_of(config, learn_from="rung")
    assert str(error.value).startswith(
        "hydra.sweeper.learn_from: 'rung' is invalid. Expected auto or all. 'rung' needs the sampler tpe"
    )
