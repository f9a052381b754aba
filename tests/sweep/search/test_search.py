"""Search in simulated time: what takes how long, and what is killed when, decides nothing."""

from __future__ import annotations

import heapq
import json
import math
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.errors import TrainyardError
from trainyard.sweep.event_records import event_of, to_record
from trainyard.sweep.events import Ended, Event, Paused, Proposed, Queued, Reported, Unit
from trainyard.sweep.proposers.pruners import Asha, Hyperband, NoPruner, Pruner
from trainyard.sweep.proposers.quiet import quiet
from trainyard.sweep.proposers.search import Limits, SearchProposer
from trainyard.sweep.proposers.source import ListSource
from trainyard.sweep.proposers.stopping import StoppingPruner
from trainyard.sweep.simulation import SimulatedJob, SimulatedSweep

EPOCHS = 9
Values = dict[int, list[float]]


def median() -> Pruner:
    from optuna.pruners import MedianPruner

    return StoppingPruner(MedianPruner(n_startup_trials=2), EPOCHS, every=2)


def percentile() -> Pruner:
    from optuna.pruners import PercentilePruner

    return StoppingPruner(PercentilePruner(25.0, n_startup_trials=3), EPOCHS)


def wilcoxon() -> Pruner:
    from optuna.pruners import WilcoxonPruner

    with quiet():
        return StoppingPruner(WilcoxonPruner(p_threshold=0.2, n_startup_steps=2), EPOCHS)


def patient() -> Pruner:
    from optuna.pruners import PatientPruner

    with quiet():
        return StoppingPruner(PatientPruner(None, patience=2), EPOCHS)


PRUNERS: list[Callable[[], Pruner]] = [
    *(NoPruner, Asha, lambda: Asha(first=2, eta=2), lambda: Hyperband(EPOCHS)),
    *(median, percentile, wilcoxon, patient),
]


def curves(count: int, seed: int) -> Values:
    draw = Random(seed)
    found = {}
    for num in range(count):
        end, noise = draw.random(), draw.random() / 5
        found[num] = [end + 1 / (epoch + 1) + draw.gauss(0, noise) for epoch in range(EPOCHS)]
    return found


def sweep(
    values: Values, make_pruner: Callable[[], Pruner], order: Any, slots: int, seconds: Any, together: int = 1
) -> SimulatedSweep:
    def make() -> SearchProposer:
        source = ListSource([[f"x={num}"] for num in values])
        return SearchProposer(source, make_pruner(), order=order, limits=Limits(len(values)), together=together)

    return SimulatedSweep(make, lambda num, _: SimulatedJob(values[num], seconds(num)), slots)


def decisions(log: list[Event]) -> list[Any]:
    found: list[Any] = []
    for event in log:
        match event:
            case Proposed(num, _, rungs):
                found.append(("new", num, rungs))
            case Queued(units, "promoted"):
                found += [("promoted", num, unit.rungs) for unit in units for num in unit.nums]
    return found


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 14),
    seed=st.integers(0, 1 << 30),
    slots=st.integers(1, 4),
    pruner=st.sampled_from(range(len(PRUNERS))),
    kills=st.lists(st.integers(1, 12), max_size=3),
    together=st.sampled_from([1, 1, 3]),
)
def test_in_the_order_of_jobs_neither_durations_nor_kills_decide(
    count: int, seed: int, slots: int, pruner: int, kills: list[int], together: int
) -> None:
    values = curves(count, seed)
    undisturbed = sweep(values, PRUNERS[pruner], "job", slots, lambda num: 1.0, together)
    assert undisturbed.run()

    draw = Random(seed)
    other = sweep(values, PRUNERS[pruner], "job", slots, lambda num: draw.choice([0.1, 1.0, 5.0]), together)
    for further in kills:
        seen = len(other.log)
        other.run(lambda: len(other.log) >= seen + further)  # noqa: B023
        other.kill()
    assert other.run()
    assert decisions(other.log) == decisions(undisturbed.log)
    states = [[each.state(num) for num in values] for each in (other, undisturbed)]
    assert states[0] == states[1]
    assert "paused" not in states[0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 30), order=st.sampled_from(["any", "job"]), pruner=st.sampled_from(range(len(PRUNERS))))
def test_a_restored_search_decides_as_the_one_before(seed: int, order: str, pruner: int) -> None:
    """Told each event as it is read back, a new proposer asks for the same."""
    values = curves(8, seed)
    draw = Random(seed)
    living = sweep(values, PRUNERS[pruner], order, 2, lambda num: draw.choice([1.0, 3.0]))

    def compare() -> bool:
        restored = living._make()
        for event in living.log:
            read = event_of(json.loads(json.dumps(to_record(event))))
            assert read == event
            assert read is not None
            restored.told(read)
        assert restored.ask(1) == living.proposer.ask(1)
        return False

    living.run(compare)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 30), seed=st.integers(0, 1 << 30), slots=st.integers(1, 4), eta=st.integers(2, 4))
def test_successive_halving_promotes_the_best_of_each_rung(count: int, seed: int, slots: int, eta: int) -> None:
    values = curves(count, seed)
    draw = Random(seed)
    found = sweep(values, lambda: Asha(eta=eta), "any", slots, lambda num: draw.choice([1.0, 3.0]))
    assert found.run()
    reported: dict[int, list[float]] = {}
    rung: dict[int, int] = {}
    for event in found.log:
        match event:
            case Reported(num, at, value):
                reported.setdefault(at, []).append(value)
                rung[num] = at
            case Queued(units, "promoted"):
                at, own = rung[units[0].nums[0]], values[units[0].nums[0]]
                better = sum(value < own[at - 1] for value in reported[at])
                most = len(reported[at]) / eta
                assert better < max(1, math.floor(most) if at == 1 else math.ceil(most))
    assert found.spent == sum(found.epochs.values()), "no epoch is trained twice"
    states = Counter(found.state(num) for num in range(count))
    assert states["done"] >= 1
    assert states["done"] + states["pruned"] == count


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 30),
    seed=st.integers(0, 1 << 30),
    slots=st.integers(1, 8),
    pruner=st.sampled_from(range(len(PRUNERS))),
)
def test_after_the_last_new_job_at_most_one_continues_for_each_that_pauses(
    count: int, seed: int, slots: int, pruner: int
) -> None:
    """So the lanes of those that pause suffice."""
    values = curves(count, seed)
    draw = Random(seed)
    found = sweep(values, PRUNERS[pruner], "any", slots, lambda num: draw.choice([1.0, 3.0]))
    while not found.run(lambda: True):
        if not found.proposer.may_be_new:
            break
    begun = len(found.log)
    assert found.run()
    paused = promoted = 0
    for event in found.log[begun - 1 :]:  # what was told last was followed by nothing yet
        match event:
            case Paused():
                paused += 1
            case Queued(units, "promoted"):
                promoted += len(units)
            case Proposed():
                raise AssertionError("a new job")
        assert promoted <= paused


def test_the_best_job_of_a_later_rung_waits_for_no_other() -> None:
    values = {num: [float(num)] * EPOCHS for num in range(5)}
    found = sweep(values, Asha, "any", 1, lambda num: 1.0)
    assert found.run()
    assert [each[:2] for each in decisions(found.log)] == [
        ("new", 0), ("new", 1), ("new", 2), ("promoted", 0), ("promoted", 0), ("new", 3), ("new", 4),
    ]  # fmt: skip


def test_the_checkpoint_of_a_paused_job_is_given_up_when_it_cannot_be_promoted_any_more() -> None:
    values = {num: [float(num)] * EPOCHS for num in range(9)}
    found = sweep(values, Asha, "any", 1, lambda num: 1.0)
    found.run(lambda: len(decisions(found.log)) == 12)
    # Of 9 jobs at the first rung 3 are promoted: 0 and 1 were, 2 may be. The last job may be better than 2.
    assert [found.state(num) for num in range(9)] == [
        "done", "paused", "paused", "pruned", "pruned", "pruned", "pruned", "pruned", "paused",
    ]  # fmt: skip
    found.run(lambda: len(decisions(found.log)) == 13)
    # 2 was promoted. Of 3 jobs at the second rung one is: 0.
    assert [found.state(num) for num in (0, 1, 2, 8)] == ["done", "pruned", "paused", "pruned"]


def paused_by_hand(found: SimulatedSweep, num: int) -> None:
    """Pause a job that runs, or has paused at a rung, as a user does."""
    found._coming[:] = [each for each in found._coming if each[3].nums != (num,)]
    heapq.heapify(found._coming)
    found._tell(Paused(num, by_hand=True))


def resumed(found: SimulatedSweep, num: int) -> None:
    """Resume a job as the head does."""
    rungs = found._scheduler.rungs.get(num)
    if any(isinstance(each, Reported) and (each.num, each.at) == (num, rungs and rungs.until) for each in found.log):
        rungs = found.proposer.beyond(num)
    found._tell(Queued((Unit((num,), rungs=rungs),), "resumed"))


@pytest.mark.parametrize("order", ["any", "job"])
@pytest.mark.parametrize("pruner", [Asha, percentile])
@pytest.mark.parametrize("held", [0, 1])
def test_a_job_that_a_user_has_paused_is_neither_promoted_nor_pruned(order: str, pruner: Any, held: int) -> None:
    """The first job is at its first rung by then, and the second one is not."""
    found = sweep({num: [float(num)] * EPOCHS for num in range(9)}, pruner, order, 2, lambda num: 1.0 + num / 100)
    found.run(lambda: True)
    assert found.epochs == {0: 1}
    paused_by_hand(found, held)
    begun = len(found.log)
    for _ in range(2):
        assert found.run()
        assert [num for num in range(9) if found.state(num) == "paused"] == [held]
        assert "done" in [found.state(num) for num in range(9)]
        found.kill()
    assert not any(isinstance(each, Queued) and each.units[0].nums == (held,) for each in found.log[begun:])
    resumed(found, held)
    assert found.run()
    assert found.state(held) in ("done", "pruned")


def test_a_search_goes_on_after_a_user_has_paused_its_first_jobs() -> None:
    found = sweep({num: [1.0] * EPOCHS for num in range(7)}, NoPruner, "any", 1, lambda num: 1.0)
    for num in range(5):
        (proposal,) = found.proposer.ask(1)
        found._take(proposal)
        paused_by_hand(found, num)
    assert found.run()
    assert [found.state(num) for num in range(7)] == ["paused"] * 5 + ["done"] * 2
    assert list(found.proposer.ending) == []


def test_a_job_whose_objective_is_nan_is_not_promoted() -> None:
    values = {num: [math.nan] * EPOCHS for num in range(6)} | {3: [1.0] * EPOCHS}
    found = sweep(values, lambda: Asha(eta=2), "any", 2, lambda num: 1.0)
    assert found.run()
    assert [found.state(num) for num in values] == ["pruned"] * 3 + ["done"] + ["pruned"] * 2


FALLS = [10.0 - epoch for epoch in range(EPOCHS)]


@pytest.mark.parametrize("order", ["any", "job"])
@pytest.mark.parametrize(
    ("make", "values", "trained"),
    [
        # The best quarter of those that are done: up to 9.5 at the first rung, 9 at the second, 8.5 at the third.
        (percentile, [FALLS, [9.0] * 9, FALLS, [11.0] * 9, [9.0] + [8.9] * 8], [9, 9, 9, 1, 3]),
        # Worse than the best one at 3 rungs of 3: that happens by chance with p = 1/8, which is below 0.2.
        (wilcoxon, [FALLS, [value + 0.5 for value in FALLS], [value - 0.5 for value in FALLS]], [9, 3, 9]),
        # No improvement for two rungs after the one with the best value.
        (patient, [FALLS, [5.0, 4.0, 4.5, 4.5, 4.5, 3.0, 2.0, 1.0, 0.0]], [9, 5]),
    ],
)
def test_pruners_of_optuna_end_jobs_at_the_rung_at_which_they_say_so(
    order: str, make: Callable[[], Pruner], values: list[list[float]], trained: list[int]
) -> None:
    found = sweep(dict(enumerate(values)), make, order, 1, lambda num: 1.0)
    assert found.run()
    assert list(found.epochs.values()) == trained
    assert [found.state(num) for num in range(len(values))] == [
        "done" if epochs == EPOCHS else "pruned" for epochs in trained
    ]


def test_a_search_ends_at_its_target() -> None:
    values = {num: [5.0 - num] * EPOCHS for num in range(6)}
    source = ListSource([[f"x={num}"] for num in values])
    found = SimulatedSweep(
        lambda: SearchProposer(source, limits=Limits(6, target=3.0)), lambda num, _: SimulatedJob(values[num]), 1
    )
    assert found.run()
    assert found.state(2) == "done"
    assert found.state(3) is None
    assert list(found.proposer.ending) == ["The target 3 was reached, which ended the search."]


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (1.0, ["The target 0.5 was not reached."]),
        (math.nan, ["All objectives of the jobs are NaN.", "The target 0.5 was not reached."]),
    ],
)
def test_what_the_ranking_does_not_show_is_told_at_the_end(value: float, lines: list[str]) -> None:
    limits = Limits(2, target=0.5)
    found = SimulatedSweep(
        lambda: SearchProposer(ListSource([["x=0"], ["x=1"]]), limits=limits), lambda *_: SimulatedJob([value]), 1
    )
    assert found.run()
    assert list(found.proposer.ending) == lines


def test_an_objective_that_is_missing_is_told_after_the_timeout_too() -> None:
    seconds = iter([0.0, 0.0, 2.0])
    proposer = SearchProposer(ListSource([["x=0"]]), limits=Limits(1, timeout=1.0), clock=lambda: next(seconds))
    assert len(proposer.ask(1)) == 1
    proposer.told(Proposed(0, ("x=0",)))
    proposer.told(Ended(0, "done", 1.0, None))
    with pytest.raises(TrainyardError, match="#0 returned nothing, but a grid with a pruner needs one number"):
        proposer.ask(1)


def test_after_the_timeout_nothing_begins_and_what_is_paused_can_go_on_later() -> None:
    values = {num: [float(num)] * EPOCHS for num in range(9)}
    sweeps: list[SimulatedSweep] = []

    def make(timeout: float | None) -> SearchProposer:
        return SearchProposer(
            ListSource([[f"x={num}"] for num in values]),
            Asha(),
            limits=Limits(9, timeout=timeout),
            clock=lambda: sweeps[0].now if sweeps else 0.0,
        )

    limits: list[float | None] = [4.0]
    sweeps.append(SimulatedSweep(lambda: make(limits[0]), lambda num, _: SimulatedJob(values[num]), 1))
    assert sweeps[0].run()
    assert sweeps[0].now < 9
    assert "paused" in [sweeps[0].state(num) for num in values]
    limits[0] = None
    sweeps[0].kill()
    assert sweeps[0].run()
    assert Counter(sweeps[0].state(num) for num in values).keys() == {"done", "pruned"}


@pytest.mark.parametrize(("last", "shares"), [(1, {0: 1}), (8, {0: 3, 1: 2}), (9, {0: 9, 1: 5, 2: 3})])
def test_hyperband_gives_brackets_their_shares(last: int, shares: dict[int, int]) -> None:
    """Those of its table in the paper: for R = 9 and eta = 3, 9, 5 and 3 trials."""
    found = Hyperband(last)
    assert Counter(found.bracket(index) for index in range(sum(shares.values()))) == shares
    assert found.rungs(0, 1).until == 3
