"""Trials that are suggested ahead: by the order of jobs nothing changes, and no slot waits for what is prepared."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.sweep.events import Began, Ended, Proposed, Queued, SlotsGained, Unit
from trainyard.sweep.proposers.ahead import AheadSource
from trainyard.sweep.proposers.base import NewJob
from trainyard.sweep.proposers.pruners import Asha, NoPruner, Pruner
from trainyard.sweep.proposers.repeats import RepeatedSource
from trainyard.sweep.proposers.search import Limits, SearchProposer
from trainyard.sweep.proposers.source import Source, Suggestion
from trainyard.sweep.proposers.trials import Trial
from trainyard.sweep.simulation import SimulatedJob, SimulatedSweep


class Knowing(Source):
    """Suggests a text of all that it knows; keeps in which thread it was asked for which trial."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []

    def suggest(self, index: int, trials: Sequence[Trial]) -> Suggestion:
        self.asked.append((index, threading.current_thread() is threading.main_thread()))
        known = [f"{trial.state[0]}{trial.result}{sorted(trial.reports.items())}" for trial in trials]
        return Suggestion((f"x={index}", f"known={hash(tuple(known))}"), {"known": known})


def sweep(
    source: Source, *, count: int, slots: int, order: Any, width: int | None, together: int, pruner: type[Pruner],
    repeats: int, draw: Random,
) -> SimulatedSweep:  # fmt: skip
    def make() -> SearchProposer:
        own = source if repeats == 1 else RepeatedSource(source, repeats, 0)
        return SearchProposer(own, pruner(), order=order, limits=Limits(count), together=together, width=width)

    values = Random(7)
    curves = [[values.random() for _ in range(9)] for _ in range(count * repeats)]
    return SimulatedSweep(make, lambda num, _: SimulatedJob(curves[num], draw.choice([0.2, 1.0, 4.0])), slots)


def proposed(found: SimulatedSweep) -> list[Any]:
    return [(event.overrides, event.note) for event in found.log if isinstance(event, Proposed)]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    seed=st.integers(0, 1 << 30),
    slots=st.integers(1, 3),
    width=st.none() | st.integers(1, 6),
    together=st.sampled_from([1, 3]),
    pruner=st.sampled_from([NoPruner, Asha]),
    repeats=st.sampled_from([1, 1, 2]),
    kills=st.lists(st.integers(1, 9), max_size=2),
)
def test_in_the_order_of_jobs_it_changes_nothing(
    count: int, seed: int, slots: int, width: int | None, together: int, pruner: type[Pruner], repeats: int,
    kills: list[int],
) -> None:  # fmt: skip
    same: Any = {"count": count, "slots": slots, "order": "job", "width": width, "together": together}
    same |= {"pruner": pruner, "repeats": repeats}
    plain = sweep(Knowing(), **same, draw=Random(seed))
    assert plain.run()
    ahead = sweep(AheadSource(Knowing(), exact=True), **same, draw=Random(seed + 1))
    for further in kills:
        seen = len(ahead.log)
        ahead.run(lambda: len(ahead.log) >= seen + further)  # noqa: B023
        ahead.kill()
    assert ahead.run()
    assert proposed(ahead) == proposed(plain)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 9), seed=st.integers(0, 1 << 30), order=st.sampled_from(["any", "job"]))
def test_with_one_slot_it_changes_nothing(count: int, seed: int, order: str) -> None:
    same: Any = {"count": count, "slots": 1, "order": order, "width": None, "together": 1, "repeats": 1, "pruner": Asha}
    plain, ahead = (
        sweep(source, **same, draw=Random(seed)) for source in (Knowing(), AheadSource(Knowing(), exact=order == "job"))
    )
    assert plain.run()
    assert ahead.run()
    assert proposed(ahead) == proposed(plain)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 30), slots=st.integers(2, 4), pruner=st.sampled_from([NoPruner, Asha]))
def test_what_a_trial_knows_does_not_depend_on_how_long_an_ask_takes(
    seed: int, slots: int, pruner: type[Pruner]
) -> None:
    same: Any = {"count": 12, "slots": slots, "order": "any", "width": None, "together": 1, "repeats": 1}
    found = []
    for _ in range(2):
        own = sweep(AheadSource(Knowing(), exact=False), **same, pruner=pruner, draw=Random(seed))
        assert own.run()
        found.append(proposed(own))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("order", "width", "together", "expected"),
    [
        ("any", None, 1, {2: False, 3: False}),
        ("job", 3, 1, {2: False, 3: False}),
        ("any", None, 2, {4: False, 5: False, 6: False}),
        ("job", 2, 1, {2: True, 3: True}),  # each waits for the result of the job whose slot it gets
    ],
)
def test_a_slot_that_becomes_free_gets_what_is_prepared(
    order: Any, width: int | None, together: int, expected: dict[int, bool]
) -> None:
    """By the number of a trial, whether it was asked for in the thread of the head, when a slot was free."""
    source = Knowing()
    ahead = AheadSource(source, exact=order == "job")
    proposer = SearchProposer(ahead, order=order, width=width, together=together, limits=Limits(20))
    proposer.told(Began())
    proposer.told(SlotsGained(((0, "cpu"), (1, "cpu"))))
    jobs: list[int] = []

    def start(free: int) -> None:
        new = proposer.ask(free)
        for each in new:
            assert isinstance(each, NewJob)
            proposer.told(Proposed(len(jobs), each.overrides, note=each.note))
            jobs.append(len(jobs))
        proposer.told(Queued(tuple(Unit((num,)) for num in jobs[-len(new) :])))

    start(2)
    for num in range(2):
        proposer.told(Ended(num, "done", 1.0, 0.5))
        start(1)
    assert {index: main for index, main in source.asked if index in expected} == expected
    if order == "job":
        assert len(source.asked) == len(set(source.asked)), "nothing is asked for twice"


@pytest.mark.parametrize(("began", "expected"), [(Began(4), 4), (Began(), 1)])
def test_without_n_jobs_the_width_is_the_maximum_number_of_slots(began: Began, expected: int) -> None:
    """On a cluster, the first agent brings fewer; a manifest of before does not record the maximum."""
    proposer = SearchProposer(Knowing(), order="job", limits=Limits(20))
    proposer.told(began)
    proposer.told(SlotsGained(((0, "cpu"),)))
    proposer.told(SlotsGained(((1, "cpu"), (2, "cpu"))))
    assert len(proposer.ask(9)) == expected
    proposer.told(Began(7))
    assert len(proposer.ask(9)) == expected, "a command that continues the search makes the same decisions"
