"""Repeats of a configuration with several seeds: which begin when, what the sampler sees, which are raced out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.errors import ConfigError
from trainyard.sweep.events import Ended, Proposed, SlotsGained
from trainyard.sweep.proposers.base import NewJob
from trainyard.sweep.proposers.pruners import Asha, NoPruner, Pruner
from trainyard.sweep.proposers.repeats import RepeatedSource, _configurations, _whole
from trainyard.sweep.proposers.search import Limits, SearchProposer
from trainyard.sweep.proposers.source import Source, Suggestion
from trainyard.sweep.proposers.trials import Trial
from trainyard.sweep.simulation import SimulatedJob, SimulatedSweep

SEED = 5


class Recorder(Source):
    """Configurations `x=0`, `x=1`, …; keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[list[tuple[int, str, float | None]]] = []

    def suggest(self, index: int, trials: Sequence[Trial]) -> Suggestion:
        self.shown.append([(trial.index, trial.state, trial.result) for trial in trials])
        return Suggestion((f"x={index}",), {"trial": {"own": index}})


def place(overrides: Sequence[str]) -> tuple[int, int]:
    own = dict(line.split("=") for line in overrides)
    return int(own["x"]), int(own["seed"]) - SEED


def sweep(
    means: Sequence[float],
    noise: float,
    *,
    repeats: int = 3,
    order: Any = "any",
    slots: int = 1,
    pruner: type[Pruner] = NoPruner,
    seconds: Any = lambda: 1.0,
    together: int = 1,
    target: float | None = None,
    sign: float = 1.0,
) -> SimulatedSweep:
    def make() -> SearchProposer:
        source = RepeatedSource(Recorder(), repeats, SEED, sign)
        limits = Limits(len(means), target=target)
        return SearchProposer(source, pruner(), order=order, limits=limits, together=together, sign=sign)

    def job(_: int, overrides: tuple[str, ...]) -> SimulatedJob:
        index, repeat = place(overrides)
        value = means[index] + Random(f"{index} {repeat}").gauss(0, noise)
        return SimulatedJob([value] * (9 if pruner is Asha else 1), seconds())

    return SimulatedSweep(make, job, slots)


def jobs(found: SimulatedSweep) -> list[tuple[int, int]]:
    return [place(event.overrides) for event in found.log if isinstance(event, Proposed)]


def test_repeats_follow_one_another_in_groups_of_one_two_and_four() -> None:
    found = sweep([1.0, 1.0], 0.0, repeats=5)
    assert found.run()
    assert jobs(found) == [(0, repeat) for repeat in range(5)] + [(1, repeat) for repeat in range(5)]
    wide = sweep([1.0], 0.0, repeats=5, slots=8)
    assert wide.run()
    assert wide.now == 3, "a group is trained side by side"
    overrides = [event.overrides for event in wide.log if isinstance(event, Proposed)]
    assert overrides == [("x=0", f"seed={5 + repeat}") for repeat in range(5)]


def test_a_configuration_that_is_worse_than_the_noise_explains_is_raced_out() -> None:
    for sign in (1.0, -1.0):
        means = [sign * each for each in (1.0, 1.01, 3.0, 0.9, 2.0, 1.0)]
        found = sweep(means, 0.02, sign=sign)
        assert found.run()
        assert Counter(index for index, _ in jobs(found)) == {0: 3, 1: 3, 2: 1, 3: 3, 4: 1, 5: 1}


def test_configurations_that_do_not_differ_are_seldom_raced_out() -> None:
    """Each is compared with the best of those before it, so that it is more often than at the level of the test."""
    found = sweep([1.0] * 60, 0.1)
    assert found.run()
    counts = Counter(Counter(index for index, _ in jobs(found)).values())
    assert counts[3] >= 40


def test_the_sampler_sees_one_trial_of_a_configuration_with_the_mean_of_its_repeats() -> None:
    recorder = Recorder()
    source = RepeatedSource(recorder, 2, SEED)
    values = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 9.0, (1, 1): 9.0}
    found = SimulatedSweep(
        lambda: SearchProposer(source, limits=Limits(3)),
        lambda num, own: SimulatedJob([values.get(place(own), 1.0)]),
        1,
    )
    assert found.run()
    assert recorder.shown == [[], [(0, "done", 2.0)], [(0, "done", 2.0), (1, "done", 9.0)]]
    notes = [event.note for event in found.log if isinstance(event, Proposed)]
    assert notes[:2] == [{"trial": {"own": 0}, "repeat": [0, 0]}, {"repeat": [0, 1]}]


def test_the_target_is_compared_with_the_mean() -> None:
    found = sweep([1.0] * 9, 0.5, repeats=2, target=0.9)
    assert found.run()
    values: dict[int, list[float]] = {}
    for event in found.log:
        if isinstance(event, Ended):
            assert isinstance(event.objective, float)
            values.setdefault(jobs(found)[event.num][0], []).append(event.objective)
    *before, last = [math.fsum(own) / len(own) if len(own) == 2 else math.inf for own in values.values()]
    assert last <= 0.9
    assert min([*before, math.inf]) > 0.9
    assert min(map(min, values.values())) < 0.9


def test_a_pruner_judges_the_first_repeat_and_the_others_train_to_their_ends() -> None:
    found = sweep([float(each) for each in range(9)][::-1], 0.0, pruner=Asha)
    assert found.run()
    ends = {(index, repeat): found.epochs[num] for num, (index, repeat) in enumerate(jobs(found))}
    assert {repeat for index, repeat in ends if index == 8} == {0, 1, 2}
    assert [ends[8, repeat] for repeat in range(3)] == [9, 9, 9]
    for index in range(9):
        if ends[index, 0] < 9:
            assert (index, 1) not in ends
    assert found.spent == sum(found.epochs.values())


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 6),
    repeats=st.integers(1, 5),
    seed=st.integers(0, 1 << 30),
    slots=st.integers(1, 4),
    pruner=st.sampled_from([NoPruner, Asha]),
    kills=st.lists(st.integers(1, 12), max_size=3),
    together=st.sampled_from([1, 3]),
)
def test_in_the_order_of_jobs_neither_durations_nor_kills_decide(
    count: int, repeats: int, seed: int, slots: int, pruner: type[Pruner], kills: list[int], together: int
) -> None:
    draw = Random(seed)
    means = [draw.random() for _ in range(count)]
    same: Any = {"repeats": repeats, "order": "job", "slots": slots, "pruner": pruner, "together": together}
    undisturbed = sweep(means, 0.2, **same)
    assert undisturbed.run()
    other = sweep(means, 0.2, **same, seconds=lambda: draw.choice([0.1, 1.0, 5.0]))
    for further in kills:
        seen = len(other.log)
        other.run(lambda: len(other.log) >= seen + further)  # noqa: B023
        other.kill()
    assert other.run()
    assert jobs(other) == jobs(undisturbed)
    for found in (other, undisturbed):
        assert "paused" not in {found.state(num) for num in range(len(jobs(found)))}
        assert len(set(jobs(found))) == len(jobs(found)), "each repeat once"
        own = Counter(index for index, _ in jobs(found))
        assert all(
            sorted(repeat for which, repeat in jobs(found) if which == index) == [*range(own[index])] for index in own
        )
        assert own.keys() == set(range(count))


def test_repeats_that_fail_are_left_out_and_a_configuration_of_which_all_do_has_failed() -> None:
    recorder = Recorder()
    proposer = SearchProposer(RepeatedSource(recorder, 3, SEED), limits=Limits(3))
    proposer.told(SlotsGained(((0, "cpu"),)))
    ends: dict[tuple[int, int], float | None] = {(0, 0): None, (0, 1): None, (0, 2): None, (1, 0): None}
    ends |= {(1, 1): 1.0, (1, 2): 3.0, (2, 0): 2.0, (2, 1): math.nan, (2, 2): 2.0}
    num = 0
    while proposals := proposer.ask(1):
        (new,) = proposals
        assert isinstance(new, NewJob)
        proposer.told(Proposed(num, new.overrides, new.rungs, note=new.note))
        value = ends.pop(place(new.overrides))
        proposer.told(Ended(num, "failed") if value is None else Ended(num, "done", 1.0, value))
        num += 1
    assert ends == {}
    assert recorder.shown[-1] == [(0, "failed", None), (1, "done", 2.0)]


def test_a_search_ends_when_the_first_five_configurations_have_failed_with_all_their_repeats() -> None:
    proposer = SearchProposer(RepeatedSource(Recorder(), 3, SEED), limits=Limits(9))
    proposer.told(SlotsGained(((0, "cpu"),)))
    begun: list[tuple[int, int]] = []
    while proposals := proposer.ask(1):
        (new,) = proposals
        assert isinstance(new, NewJob)
        proposer.told(Proposed(len(begun), new.overrides, new.rungs, note=new.note))
        proposer.told(Ended(len(begun), "failed"))
        begun.append(place(new.overrides))
    assert begun == [(index, repeat) for index in range(5) for repeat in range(3)][:13]
    assert list(proposer.ending) == ["The search ended because its first 5 trials failed."]


LINES = ["optim.lr=interval(0.1,0.5)"]


def test_the_first_seed_is_that_of_the_command_line_or_else_of_the_config(hydra: Any, settings_of: Any) -> None:
    loader, config = hydra
    config.seed = 7
    for lines, seed in ((LINES, 7), ([*LINES, "seed=3"], 3)):
        (new,) = settings_of(config, repeats=2).proposer(lines, loader, config).ask(1)
        assert isinstance(new, NewJob)
        assert new.overrides[1:] == (f"seed={seed}",)


@pytest.mark.parametrize(
    ("repeats", "more", "told"),
    [
        (0, [], "hydra.sweeper.repeats: 0 is invalid. Expected an integer of at least 1"),
        (2, ["seed=0,1"], "hydra.sweeper.repeats: 2 is invalid. Expected 1, because seed is searched"),
        (2, ["seed=abc"], "seed: 'abc' is invalid. Expected"),
    ],
)
def test_repeats_that_cannot_be_are_refused(
    hydra: Any, settings_of: Any, repeats: int, more: list[str], told: str
) -> None:
    loader, config = hydra
    with pytest.raises(ConfigError) as error:
        settings_of(config, repeats=repeats).proposer([*LINES, *more], loader, config)
    assert str(error.value).startswith(told)


def test_repeats_of_an_application_without_a_seed_are_refused(hydra: Any, settings_of: Any) -> None:
    loader, config = hydra
    del config.seed
    with pytest.raises(ConfigError) as error:
        settings_of(config, repeats=2).proposer(LINES, loader, config)
    assert str(error.value).startswith(
        "hydra.sweeper.repeats: 2 is invalid. Expected 1, because the config of this application has"
    )


@pytest.mark.parametrize(
    ("sampler", "values"), [("TPESampler", [2.0, 9.0]), ("GPSampler", [1.0, 9.0, 3.0]), ("RandomSampler", [2.0, 9.0])]
)
def test_a_sampler_that_knows_noise_sees_each_repeat(
    hydra: Any, settings_of: Any, sampler: str, values: list[float]
) -> None:
    loader, config = hydra
    node = {"_target_": f"optuna.samplers.{sampler}", "seed": 0}
    proposer = settings_of(config, sampler=node, repeats=2, direction="minimize").proposer(LINES, loader, config)
    source = proposer._source
    trials = []
    for num, (index, repeat, value) in enumerate([(0, 0, 1.0), (0, 1, 3.0), (1, 0, 9.0)]):
        own = Trial(num, num, (f"optim.lr={(0.25, 0.5)[index]}", f"seed={repeat}"), {"repeat": [index, repeat]}, "done")
        own.result = value
        trials.append(source.place(own))
    whole = list(map(_whole, _configurations(trials)))
    study = source._source.source.study(whole)
    assert [trial.value for trial in study.trials] == values
    assert [trial.params["optim.lr"] for trial in study.trials] == [0.25, 0.5, 0.25][: len(values)]
