"""Suggestions: a function of the seed and of what is recorded; what a parameter is, and when."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from trainyard.errors import ConfigError
from trainyard.sweep.event_records import event_of, to_record
from trainyard.sweep.events import Event, Proposed
from trainyard.sweep.proposers.base import NewJob
from trainyard.sweep.proposers.pruners import Asha, Hyperband, NoPruner
from trainyard.sweep.proposers.search import Limits, SearchProposer
from trainyard.sweep.proposers.source import ListSource
from trainyard.sweep.proposers.space import Space
from trainyard.sweep.simulation import SimulatedJob, SimulatedSweep

CONF = Path(__file__).parents[3] / "conf"
LINES = [
    "optim.lr=tag(log,interval(1e-5,1e-1))",
    "data.batch_size=range(8,64,8)",
    "model.hidden=[16],[32],[64]",
    "seed=3",
]


def sampler(name: str, **changed: Any) -> DictConfig:
    node = OmegaConf.load(CONF / f"hydra/sweeper/sampler/{name}.yaml")
    return OmegaConf.merge(node, changed)  # type: ignore[return-value]


def lines_of(log: list[Event]) -> list[Any]:
    return [(event.overrides, event.note) for event in log if isinstance(event, Proposed)]


def job(num: int, overrides: tuple[str, ...]) -> SimulatedJob:
    own = dict(line.split("=") for line in overrides)
    rate, width = float(own["optim.lr"]), int(own["model.hidden"][1:-1])
    return SimulatedJob([abs(rate - 0.01) + 1 / width + 1 / epoch for epoch in range(1, 10)], 1 + num % 3)


@pytest.mark.parametrize(
    ("name", "learn_from"),
    [("tpe", "rung"), *((name, "all") for name in ("tpe", "random", "qmc", "cmaes", "gp", "nsgaii"))],
)
def test_what_is_killed_and_restored_suggests_what_it_would_have_suggested(
    hydra: Any, settings_of: Any, name: str, learn_from: str
) -> None:
    loader, config = hydra
    small = {"gp": {"n_startup_trials": 4}, "tpe": {"n_startup_trials": 4}, "cmaes": {"popsize": 3}}
    small["nsgaii"] = {"population_size": 4}
    settings = settings_of(
        config, sampler=sampler(name, seed=7, **small.get(name, {})), order="job", direction="minimize", n_trials=7,
        pruner={"_target_": "trainyard.sweep.proposers.pruners.Asha", "eta": 2}, learn_from=learn_from,
    )  # fmt: skip

    def make() -> SearchProposer:
        return settings.proposer(LINES, loader, config)

    undisturbed = SimulatedSweep(make, job, 2)
    assert undisturbed.run()
    other = SimulatedSweep(make, lambda num, own: SimulatedJob(job(num, own).values), 2)
    for stop in (3, 8):
        other.run(lambda: len(other.reports) >= stop)  # noqa: B023
        records = [json.loads(json.dumps(to_record(event))) for event in other.log]
        other.log = [event for record in records if (event := event_of(record)) is not None]
        other.kill()
    assert other.run()
    assert lines_of(other.log) == lines_of(undisturbed.log)
    assert len({own for own, _ in lines_of(other.log)}) >= 6, "they differ"
    assert other.spent == sum(other.epochs.values()), "nothing is trained twice"


def test_the_values_of_recorded_overrides_are_those_that_were_suggested(hydra: Any) -> None:
    loader, config = hydra
    space = Space(LINES, {}, loader, config)
    given = {"optim.lr": 0.1 + 0.2, "data.batch_size": 24, "model.hidden": "[32]"}
    overrides = space.ask(lambda name, _: given[name])
    assert overrides == ("optim.lr=0.30000000000000004", "data.batch_size=24", "model.hidden=[32]", "seed=3")
    assert space.values(overrides) == given


def test_ranges_are_those_of_the_grammar(hydra: Any) -> None:
    loader, config = hydra
    lines = ["optim.lr=interval(0.1,0.5)", "seed=int(interval(1,5))", "data.batch_size=range(1,10,3)"]
    lines += [
        "+a=tag(log,int(interval(1,100)))",
        "model=glob(m*)",
        "optim=choice(adam,sgd)",
        "loop.max_epochs=choice(5)",
        "+b=range(0,1,0.3)",
        "+c=range(0.9,0,-0.3)",
    ]
    found = {name: str(each.distribution) for name, each in Space(lines, {}, loader, config).parameters.items()}
    assert found == {
        "optim.lr": "FloatDistribution(high=0.5, log=False, low=0.1, step=None)",
        "seed": "IntDistribution(high=5, log=False, low=1, step=1)",
        "data.batch_size": "IntDistribution(high=7, log=False, low=1, step=3)",
        "a": "IntDistribution(high=100, log=True, low=1, step=1)",
        "optim": "CategoricalDistribution(choices=('adam', 'sgd'))",
        "b": "FloatDistribution(high=0.9, log=False, low=0.0, step=0.3)",
        "c": "FloatDistribution(high=0.9, log=False, low=0.3, step=0.3)",
    }


def test_a_key_whose_condition_does_not_hold_is_not_asked_for(hydra: Any) -> None:
    loader, config = hydra
    lines = ["model.hidden=[8],[16]", "model=mlp,cnn", "model.dropout=interval(0,0.5)"]
    when = {"model.hidden": ("model=mlp",), "model.dropout": ("model=mlp", "model.hidden=[16]")}
    space = Space(lines, when, loader, config)

    def asked(values: dict[str, Any]) -> dict[str, Any]:
        return space.values(space.ask(lambda name, _: values[name]))

    assert asked({"model": "cnn"}) == {"model": "cnn"}
    assert asked({"model": "mlp", "model.hidden": "[8]"}) == {"model": "mlp", "model.hidden": "[8]"}
    every = {"model": "mlp", "model.hidden": "[16]", "model.dropout": 0.25}
    assert asked(every) == every


MAX = "hydra.sweeper.direction: 'max' is invalid. Expected one of minimize, maximize."


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"n_trials": 0},
            "hydra.sweeper.n_trials: 0 is invalid. Expected an integer of at least 1, or null (100, or no "
            "limit with timeout or target).",
        ),
        ({"timeout": -1}, "hydra.sweeper.timeout: -1 is invalid. Expected a number of seconds above 0"),
        ({"target": "low"}, "hydra.sweeper.target: 'low' is invalid. Expected a number, or null for none."),
        (
            {"order": "jobs"},
            "hydra.sweeper.order: 'jobs' is invalid. Expected one of any, job, or null for any. Did you mean 'job'?",
        ),
        (
            {"direction": "max"},
            "hydra.sweeper.direction: 'max' is invalid. Expected one of minimize, maximize, or null for the direction "
            "of the training.",
        ),
        ({"objective": ["a", "b"], "direction": ["max", "minimize"]}, MAX),
        ({"n_trial": 5}, "hydra.sweeper: 'n_trial' is invalid. Expected a setting of hydra/sweeper=search"),
        ({"params": ["optim.lr=1"]}, "hydra.sweeper.params: ['optim.lr=1'] is invalid. Expected a mapping"),
        (
            {"params": {"optim": {"lr": "interval(0,1)"}}},
            "hydra.sweeper.params.optim: {'lr': 'interval(0,1)'} is invalid. Expected a value in override syntax. "
            "Write keys with dots",
        ),
        (
            {"storage": "sqlite:///a.db"},
            "hydra.sweeper.storage: 'sqlite:///a.db' is invalid. Expected null. A search is stored in the directory",
        ),
        (
            {"sampler": {"_target_": "optuna.samplers.TPESampler", "constraints_func": "my.f", "seed": 0}},
            "hydra.sweeper.sampler.constraints_func: 'my.f' is invalid. Expected null. Use hydra.sweeper.constraints.",
        ),
        ({"sampler": "tpe"}, "hydra.sweeper.sampler: 'tpe' is invalid. Expected a sampler: hydra/sweeper/sampler=tpe"),
        ({"pruner": "asha"}, "hydra.sweeper.pruner: 'asha' is invalid. Expected a pruner: hydra/sweeper/pruner=none"),
        (
            {"sampler": {"_target_": "optuna.samplers.TPESampler", "seed": -1}},
            "hydra.sweeper.sampler.seed: -1 is invalid",
        ),
        (
            {"sampler": {"_target_": "optuna.samplers.TPESampler", "gama": 1, "seed": 0}},
            "hydra.sweeper.sampler: 'gama' is invalid",
        ),
        (
            {"sampler": {"_target_": "numpy.random.default_rng", "seed": 0}},
            "hydra.sweeper.sampler: 'numpy.random.default_rng' is invalid. Expected the class of a sampler of Optuna",
        ),
        (
            {"pruner": {"_target_": "optuna.samplers.RandomSampler"}},
            "hydra.sweeper.pruner: 'optuna.samplers.RandomSampler' is invalid. Expected the class of a pruner of",
        ),
        ({"pruner": {"_target_": "trainyard.sweep.proposers.pruners.Asha", "eta": 1}}, "hydra.sweeper.pruner.eta: 1"),
        (
            {"pruner": {"_target_": "trainyard.sweep.proposers.pruners.Asha", "by": "iter"}},
            "hydra.sweeper.pruner.by: 'iter' is invalid. Expected epoch, the unit of this loop, or auto.",
        ),
        (
            {"pruner": {"_target_": "trainyard.sweep.proposers.pruners.Asha", "first": 0}},
            "hydra.sweeper.pruner.first: 0 is invalid. Expected an integer of at least 1, or auto.",
        ),
        (
            {"pruner": {"_target_": "optuna.pruners.MedianPruner", "every": 0}},
            "hydra.sweeper.pruner.every: 0 is invalid. Expected an integer of at least 1, or auto.",
        ),
        (
            {"pruner": {"_target_": "optuna.pruners.ThresholdPruner", "lower": None, "upper": None}},
            "hydra.sweeper.pruner.lower: None is invalid. Expected a number for hydra.sweeper.pruner.lower or "
            "hydra.sweeper.pruner.upper, or for both.",
        ),
    ],
)
def test_a_wrong_setting_is_told(hydra: Any, settings_of: Any, changed: dict[str, Any], told: str) -> None:
    loader, config = hydra
    with pytest.raises(ConfigError) as error:
        settings_of(config, **changed).proposer(LINES, loader, config)
    assert str(error.value).startswith(told), error.value


def test_rungs_at_which_nothing_is_reported_are_refused(hydra: Any, settings_of: Any) -> None:
    _, config = hydra
    config.loop.val_interval = 2
    asha = {"_target_": "trainyard.sweep.proposers.pruners.Asha", "by": "auto", "first": "auto", "eta": 3}
    assert settings_of(config, pruner=asha).pruner["first"] == 2
    with pytest.raises(ConfigError) as error:
        settings_of(config, pruner={**asha, "first": 3})
    assert str(error.value).startswith(
        "hydra.sweeper.pruner.first: 3 is invalid. Expected rungs at which the objective is reported: multiples of "
        "loop.val_interval=2 from 2 on, or auto."
    )
    with pytest.raises(ConfigError) as error:
        settings_of(config, pruner={"_target_": "optuna.pruners.MedianPruner", "every": 3})
    assert str(error.value).startswith(
        "hydra.sweeper.pruner.every: 3 is invalid. Expected rungs at which the objective"
    )
    assert "There is no validation at epoch 5." in str(error.value)
    config.loop = {"max_iters": 90, "val_interval": 2}
    with pytest.raises(ConfigError) as error:
        settings_of(config, pruner={**asha, "first": 3})
    assert str(error.value).endswith("There is no validation at iteration 3.")


@pytest.mark.parametrize(("key", "value"), [("val_interval", 0), ("val_begin", "x"), ("max_epochs", "x")])
def test_a_pruner_names_a_wrong_key_of_the_loop(hydra: Any, settings_of: Any, key: str, value: Any) -> None:
    _, config = hydra
    config.loop[key] = value
    asha = {"_target_": "trainyard.sweep.proposers.pruners.Asha", "by": "auto", "first": "auto", "eta": 3}
    with pytest.raises(ConfigError, match=rf"^loop\.{key}: .* is invalid. Expected an integer of at least 1"):
        settings_of(config, pruner=asha)


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median", "wilcoxon"])
@pytest.mark.parametrize(
    ("loop", "told"),
    [
        ({"max_epochs": 3, "val_interval": 5}, "loop.val_interval: 5 is invalid. Expected at most 3 with"),
        ({"max_epochs": 6, "val_interval": 4, "val_begin": 5}, "loop.val_begin: 5 is invalid. Expected at most 4 with"),
        (
            {"max_epochs": 9, "val_interval": 2, "val_begin": 30},
            "loop.val_begin: 30 is invalid. Expected at most 8 with",
        ),
    ],
)
def test_a_pruner_names_the_key_of_the_loop_by_which_the_training_has_no_rung(
    hydra: Any, settings_of: Any, pruner: str, loop: dict[str, int], told: str
) -> None:
    _, config = hydra
    config.loop = loop
    with pytest.raises(ConfigError) as error:
        settings_of(config, pruner=OmegaConf.load(CONF / f"hydra/sweeper/pruner/{pruner}.yaml"))
    assert str(error.value) == (
        f"{told} hydra/sweeper/pruner={pruner}. Otherwise, the training (loop.max_epochs={loop['max_epochs']}) would "
        "end before the first rung."
    )


def test_a_pruner_of_optuna_has_its_rungs_at_the_validations(hydra: Any, settings_of: Any) -> None:
    _, config = hydra
    config.loop.val_interval = 2
    found = settings_of(config, pruner={"_target_": "optuna.pruners.MedianPruner"}).pruner
    assert {key: found[key] for key in ("by", "first", "every", "last")} == {
        "by": "epoch", "first": 2, "every": 2, "last": config.loop.max_epochs,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("points", "told"),
    [
        ({"optim.lr": 1}, "hydra.sweeper.enqueue: {'optim.lr': 1} is invalid. Expected a list of points"),
        ([{"optim.lr": 1}], "hydra.sweeper.enqueue: optim.lr: 1 is invalid. Expected a number from 1e-05 to 0.1."),
        ([{"optim.lr": "a"}], "hydra.sweeper.enqueue: optim.lr: 'a' is invalid. Expected a number from 1e-05 to 0.1."),
        (
            [{"data.batch_size": 12}],
            "hydra.sweeper.enqueue: data.batch_size: 12 is invalid. Expected an integer from 8 to 56 in steps of 8.",
        ),
        (
            [{"model.hidden": [8]}],
            "hydra.sweeper.enqueue: model.hidden: [8] is invalid. Expected one of [16], [32], [64].",
        ),
        ([{"optim.lrr": 1}], "hydra.sweeper.enqueue: 'optim.lrr' is invalid. Expected a parameter of the search:"),
    ],
)
def test_a_point_that_is_not_in_the_space_is_refused(hydra: Any, settings_of: Any, points: Any, told: str) -> None:
    loader, config = hydra
    with pytest.raises(ConfigError) as error:
        settings_of(config, enqueue=points).proposer(LINES, loader, config)
    assert str(error.value).startswith(told), error.value


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "hydra/sweeper: 'search' is invalid. Expected overrides with a range, such as"),
        (["optim.lr=0.1"], "hydra/sweeper: 'search' is invalid. Expected overrides with a range, such as"),
        (["optim.lr=interval(1,0.1)"], "optim.lr: 'interval(1,0.1)' is invalid. Expected an interval of two finite"),
        (["optim.lr=interval(1,inf)"], "optim.lr: 'interval(1,inf)' is invalid. Expected an interval of two finite"),
        (
            ["optim.lr=tag(log,interval(0,1))"],
            "optim.lr: 'tag(log,interval(0,1))' is invalid. Expected numbers above 0",
        ),
        (["seed=range(3,3)"], "seed: 'range(3,3)' is invalid. Expected a range that contains a value."),
        (["seed=range(0,3,0)"], "seed: 'range(0,3,0)' is invalid. Expected a range that contains a value."),
        (["optim.lr=range(0,inf,0.5)"], "optim.lr: 'range(0,inf,0.5)' is invalid. Expected a range that contains a"),
    ],
)
def test_a_space_without_values_is_refused(hydra: Any, settings_of: Any, lines: list[str], told: str) -> None:
    loader, config = hydra
    with pytest.raises(ConfigError) as error:
        settings_of(config).proposer(lines, loader, config)
    assert str(error.value).startswith(told)


def test_params_of_a_config_are_overrides_before_those_of_the_command_line(hydra: Any, settings_of: Any) -> None:
    loader, config = hydra
    params = {
        "optim.lr": "interval(0.1,0.5)",
        "model.hidden": "[16],[32]",
        "seed": 3,
        "loop.max_iters": None,
        "optim.betas": [0.9, None],
        "data.shuffle": True,
    }
    proposer = settings_of(config, params=OmegaConf.create(params)).proposer(["model.hidden=[8],[64]"], loader, config)
    assert proposer.identity["space"] == ["optim.lr=interval(0.1,0.5)", "model.hidden=[8],[64]"]
    (first,) = proposer.ask(1)
    assert isinstance(first, NewJob)
    own = dict(line.split("=") for line in first.overrides)
    assert 0.1 <= float(own.pop("optim.lr")) <= 0.5
    assert own.pop("model.hidden") in ("[8]", "[64]")
    assert own == {"seed": "3", "loop.max_iters": "null", "optim.betas": "[0.9,null]", "data.shuffle": "True"}


@pytest.mark.parametrize("name", ["median", "patient", "percentile", "threshold", "wilcoxon"])
def test_what_is_experimental_in_optuna_is_not_warned_of(hydra: Any, settings_of: Any, name: str) -> None:
    loader, config = hydra
    node = OmegaConf.merge(OmegaConf.load(CONF / f"hydra/sweeper/pruner/{name}.yaml"), {"n_startup_trials": 1})
    if name in ("patient", "threshold", "wilcoxon"):
        del node["n_startup_trials"]
    if name == "threshold":
        node["lower"] = 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings_of(config, pruner=node).proposer(LINES, loader, config)


def test_a_search_without_limits_has_a_hundred_trials(hydra: Any, settings_of: Any) -> None:
    _, config = hydra
    assert settings_of(config).limits == Limits(100)
    assert settings_of(config, timeout=5).limits == Limits(None, 5.0)


def test_the_rungs_of_listed_jobs_are_known_before_they_are_proposed() -> None:
    jobs = [[f"optim.lr={rate}"] for rate in range(9)]
    for pruner in (Asha(first=2), Hyperband(last=9), NoPruner()):
        proposer = SearchProposer(ListSource(jobs), pruner, limits=Limits(9))
        first = [each.rungs for each in proposer.ask(9) if isinstance(each, NewJob)]
        assert len(first) == 9
        assert [proposer.first_rungs(index) for index in range(9)] == first
