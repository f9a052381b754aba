"""Searches for several objectives, and under constraints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from trainyard.errors import ConfigError, TrainyardError
from trainyard.sweep.event_records import event_of, to_record
from trainyard.sweep.events import Ended, Proposed, Queued, SlotsGained
from trainyard.sweep.goals import Constraint, Goals
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.proposers.base import NewJob
from trainyard.sweep.proposers.goal_settings import goals_of
from trainyard.sweep.proposers.sampling import SamplerSource
from trainyard.sweep.simulation import SimulatedJob, SimulatedSweep

CONF = Path(__file__).parents[3] / "conf"
LINES = ["optim.lr=interval(0,1)", "optim.weight_decay=interval(0,1)"]
NAMES, BOTH = ["val/accuracy", "model/parameters"], ["maximize", "minimize"]


def sampler(name: str, **changed: Any) -> DictConfig:
    node = OmegaConf.load(CONF / f"hydra/sweeper/sampler/{name}.yaml")
    return OmegaConf.merge(node, changed)  # type: ignore[return-value]


def numbers(overrides: tuple[str, ...]) -> tuple[float, float]:
    first, second = (float(line.partition("=")[2]) for line in overrides)
    return first, second


def run(settings: Any, hydra: Any, returned: Any) -> SimulatedSweep:
    loader, config = hydra
    found = SimulatedSweep(
        lambda: settings.proposer(LINES, loader, config),
        lambda _, overrides: SimulatedJob([0.0], result=returned(*numbers(overrides))),
        1,
    )
    assert found.run()
    return found


def chosen(found: SimulatedSweep) -> list[tuple[float, float]]:
    return [numbers(event.overrides) for event in found.log if isinstance(event, Proposed)]


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "gp", "nsgaii"])
def test_a_search_of_several_objectives_is_continued_as_it_was(hydra: Any, settings_of: Any, name: str) -> None:
    changed: dict[str, Any] = {"nsgaii": {"population_size": 4}, "tpe": {"n_startup_trials": 3}}.get(name, {})
    settings = settings_of(
        hydra[1], sampler=sampler(name, seed=5, **changed), objective=NAMES, direction=BOTH, n_trials=8,
        constraints=["model/parameters <= 1.5"],
    )  # fmt: skip

    def returned(x: float, y: float) -> dict[str, float]:
        return {"val/accuracy": x, "model/parameters": x + y}

    undisturbed = run(settings, hydra, returned)
    loader, config = hydra
    proposer = settings.proposer(LINES, loader, config)
    for event in undisturbed.log[: len(undisturbed.log) * 2 // 3]:
        proposer.told(event)
    known = len(proposer.trials)
    (new,) = proposer.ask(1)
    assert numbers(new.overrides) == chosen(undisturbed)[known]
    assert proposer.identity["objective"] == NAMES
    assert Goals.of(json.loads(json.dumps(proposer.identity))) == proposer.goals


def test_the_sampler_sees_each_objective_and_what_is_violated(hydra: Any, settings_of: Any) -> None:
    loader, config = hydra
    settings = settings_of(
        config, objective=NAMES, direction=BOTH, constraints=["val/loss <= 1", "val/accuracy >= 0.5"]
    )
    proposer = settings.proposer(LINES, loader, config)
    proposer.told(SlotsGained(((0, "cpu"),)))
    for num, value in enumerate(
        [{"val/accuracy": 0.25, "model/parameters": 9, "val/loss": 3}, [math.nan, 7, 0.5], [0.75, math.nan, math.nan]]
    ):
        proposer.told(Proposed(num, ("optim.lr=0.5", "optim.weight_decay=0.5"), note={}))
        proposer.told(Ended(num, "done", 1.0, value))
    source = proposer._source.source
    assert isinstance(source, SamplerSource)
    study = source.study(proposer.trials)
    assert [str(each.name) for each in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.values for trial in study.trials] == [[0.25, 9.0], [-math.inf, 7.0], [0.75, math.inf]]
    violations = [trial.system_attrs["constraints"] for trial in study.trials]
    assert violations == [[2.0, 0.25], [-0.5, math.inf], [math.inf, -0.25]]


@pytest.mark.parametrize("name", ["tpe", "nsgaii"])
def test_samplers_go_where_the_constraints_are_kept(hydra: Any, settings_of: Any, name: str) -> None:
    """The best values violate the constraint: without it most of the later trials would have them."""
    changed: dict[str, Any] = {"nsgaii": {"population_size": 8}}.get(name, {})
    same = {"sampler": sampler(name, seed=3, **changed), "direction": "minimize", "n_trials": 48}

    def share(**more: Any) -> float:
        found = run(
            settings_of(hydra[1], **same, **more), hydra,
            lambda x, y: {"loss": x + y, "size": 1 - x} if more else x + y,
        )  # fmt: skip
        later = chosen(found)[24:]
        return sum(x >= 0.5 for x, _ in later) / len(later)

    hydra[1].objective = "loss"
    assert share(constraints="size <= 0.5") > 0.5 > share()


def test_the_target_counts_only_where_the_constraints_are_kept(hydra: Any, settings_of: Any) -> None:
    hydra[1].objective = "loss"
    settings = settings_of(
        hydra[1], sampler=sampler("random"), direction="minimize", target=0.3, constraints=["size <= 0.5"]
    )
    found = run(settings, hydra, lambda x, y: {"loss": x, "size": y})
    *before, last = chosen(found)
    assert last[0] <= 0.3
    assert last[1] <= 0.5
    assert any(x <= 0.3 for x, _ in before)
    assert not any(x <= 0.3 and y <= 0.5 for x, y in before)


def test_a_number_that_is_missing_ends_the_search(hydra: Any, settings_of: Any) -> None:
    settings = settings_of(hydra[1], objective=NAMES, direction=BOTH)
    with pytest.raises(TrainyardError) as error:
        run(settings, hydra, lambda x, y: {"val/accuracy": x, "model/parameters": None})
    assert (
        "a number for each of val/accuracy, model/parameters: there is none for model/parameters. Check the names in "
        "hydra.sweeper.objective and hydra.sweeper.constraints."
    ) in str(error.value)


def test_a_warm_start_takes_what_has_all_objectives(
    hydra: Any, settings_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader, config = hydra
    manifest = Manifest.open(tmp_path)
    for num, value in enumerate([{"val/accuracy": 0.5, "model/parameters": 4}, 0.5, {"val/accuracy": 0.5}]):
        manifest.log(Proposed(num, ("optim.lr=0.5", "optim.weight_decay=0.25")), Ended(num, "done", 1.0, value))
    settings = settings_of(config, objective=NAMES, direction=BOTH, warm_start=str(tmp_path))
    proposer = settings.proposer(LINES, loader, config)
    (trial,) = proposer._source.source.study([]).trials
    assert trial.values == [0.5, 4.0]
    assert capsys.readouterr().out.splitlines()[1:] == ["  skipped #1, #2: no value of model/parameters"]
    other = settings_of(config, warm_start=str(tmp_path)).proposer(LINES, loader, config)
    assert [trial.value for trial in other._source.source.study([]).trials] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"objective": "val/loss"},
            "hydra.sweeper.objective: 'val/loss' is invalid. Expected a list of several different metrics, such as",
        ),
        ({"objective": ["val/loss"]}, "hydra.sweeper.objective: ['val/loss'] is invalid. Expected a list of several"),
        (
            {"objective": NAMES},
            "hydra.sweeper.direction: None is invalid. Expected a list with minimize or maximize for each of",
        ),
        (
            {"objective": NAMES, "direction": ["maximize"]},
            "hydra.sweeper.direction: ['maximize'] is invalid. Expected a list",
        ),
        ({"objective": NAMES, "direction": ["up", "maximize"]}, "hydra.sweeper.direction: 'up' is invalid. Expected"),
        (
            {"direction": BOTH},
            "hydra.sweeper.objective: None is invalid. Expected a list of 2 metrics, one per entry of",
        ),
        (
            {"constraints": {"val/loss": 1}},
            "hydra.sweeper.constraints: {'val/loss': 1} is invalid. Expected a constraint such as",
        ),
        (
            {"constraints": ["val/loss < 1"]},
            "hydra.sweeper.constraints: 'val/loss < 1' is invalid. Expected a metric, <=",
        ),
    ],
)
def test_goals_that_cannot_be_are_refused(hydra: Any, settings_of: Any, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings_of(hydra[1], **changed)
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"pruner": {"_target_": "trainyard.sweep.proposers.pruners.Asha"}},
         "hydra/sweeper/pruner: 'asha' is invalid. Expected none, because the search has several objectives. A pruner"),
        ({"target": 0.5}, "hydra.sweeper.target: 0.5 is invalid. Expected null, because the search has several"),
        ({"repeats": 2}, "hydra.sweeper.repeats: 2 is invalid. Expected 1, because the search has several objectives"),
        ({"sampler": sampler("cmaes")},
         "hydra/sweeper/sampler: 'cmaes' is invalid. Expected a sampler that supports several objectives: tpe, gp"),
    ],
)  # fmt: skip
def test_what_knows_one_objective_is_refused_with_several(
    hydra: Any, settings_of: Any, changed: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as error:
        settings_of(hydra[1], objective=NAMES, direction=BOTH, **changed)
    assert str(error.value).startswith(told)


def test_an_application_without_an_objective_in_its_config_returns_a_list() -> None:
    """As with Hydra's Optuna plugin, whose `direction` is a list, of an enum even."""
    config = OmegaConf.create({})
    found = goals_of({"direction": ["minimize", "Direction.maximize"]}, config)
    assert found == Goals(("objective.0", "objective.1"), ("minimize", "maximize"))
    one = goals_of({"direction": ["minimize"], "constraints": ["size <= 3"]}, config)
    assert one == Goals(("objective",), ("minimize",), (Constraint("size", "<=", 3.0),))
    assert goals_of({"direction": ["minimize"]}, config) is None


def test_a_pruner_goes_with_a_constraint(hydra: Any, settings_of: Any) -> None:
    """What is not measured at a rung counts as kept there."""
    loader, config = hydra
    settings = settings_of(
        config, direction="minimize", constraints=["size <= 1"], n_trials=6,
        pruner={"_target_": "trainyard.sweep.proposers.pruners.Asha", "eta": 2},
    )  # fmt: skip
    found = SimulatedSweep(
        lambda: settings.proposer(LINES, loader, config),
        lambda num, _: SimulatedJob([float(num)] * 4, result={"val/accuracy": float(num), "size": 2.0}),
        1,
    )
    assert found.run()
    proposer = found.proposer
    source = proposer._source.source  # type: ignore[attr-defined]
    trials = source.study(proposer.trials).trials  # type: ignore[attr-defined]
    assert {(str(trial.state.name), *trial.system_attrs["constraints"]) for trial in trials} == {
        ("COMPLETE", 1.0),
        ("PRUNED", 0.0),
    }
    assert isinstance(proposer.ask(1), list)
    assert not [each for each in proposer.ask(1) if isinstance(each, NewJob)]


def test_a_pruner_prefers_what_keeps_the_constraints_and_then_what_violates_them_least(
    hydra: Any, settings_of: Any
) -> None:
    """The best values violate the constraint: it is reported at the rungs, and none of these goes on."""
    loader, config = hydra
    settings = settings_of(
        config, direction="minimize", constraints=["size <= 3"], n_trials=8,
        pruner={"_target_": "trainyard.sweep.proposers.pruners.Asha", "eta": 2},
    )  # fmt: skip

    def promoted(size: Any) -> tuple[set[int], SimulatedSweep]:
        found = SimulatedSweep(
            lambda: settings.proposer(LINES, loader, config),
            lambda num, _: SimulatedJob(
                [9.0 - num] * 4, result={"val/accuracy": 9.0 - num, "size": size(num)}, metrics={"size": size(num)}
            ),
            8,
        )
        assert found.run()
        return {event.units[0].nums[0] for event in found.log if isinstance(event, Queued) and event.why}, found

    nums, found = promoted(lambda num: 1.0 if num < 4 else 9.0)
    assert nums == {0, 1, 2, 3}
    source = found.proposer._source.source  # type: ignore[attr-defined]
    trials = source.study(found.proposer.trials).trials  # type: ignore[attr-defined]
    violations = [trial.system_attrs["constraints"] for trial in trials]
    assert violations == [[-2.0]] * 4 + [[6.0]] * 4
    assert {trial.state.name for trial in trials[4:]} == {"PRUNED"}
    replayed = settings.proposer(LINES, loader, config)
    for event in found.log:
        line = to_record(event)
        replayed.told(event if line is None else event_of(json.loads(json.dumps(line))))
    assert [trial.violation for trial in replayed.trials] == [0.0] * 4 + [6.0] * 4, "as the manifest has it"

    nums, _ = promoted(lambda num: 5.0 + num)  # all violate it, the first ones least
    assert nums == {0, 1, 2, 3}
