"""Proposers: a restored one stands where the one before it stood."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from halving import HalvingProposer
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.sweep.event_records import event_of, to_record
from trainyard.sweep.events import Began, Ended, Event, Paused, Proposed, Queued, Reported, SlotsGained, Start, Unit
from trainyard.sweep.proposers import GridProposer, NewJob, Promote
from trainyard.sweep.scheduler import Scheduler


def test_a_grid_proposes_all_of_its_jobs_at_once() -> None:
    grid = GridProposer([["seed=0"], ["seed=1"]], 5)
    assert grid.ask(1) == [NewJob(("seed=0",), 5), NewJob(("seed=1",), 6)]
    assert grid.ask(1) == []
    assert grid.judge(5, 1, 0.5) is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 3), st.integers(0, 1 << 30), st.booleans())
def test_a_restored_proposer_decides_as_the_one_before(values: list[int], slots: int, seed: int, fails: bool) -> None:
    """Successive halving without processes, in any order of reports, restored after each event."""
    draw = Random(seed)
    overrides = [[f"x={num}"] for num in range(len(values))]
    log: list[Event] = []
    scheduler, living = Scheduler(), HalvingProposer(overrides, 2)
    at_work: list[Unit] = []

    def tell(event: Event) -> None:
        read = event_of(json.loads(json.dumps(to_record(event))))
        assert read is not None
        log.append(read)
        at_work.extend(action.unit for action in scheduler.handle(read) if isinstance(action, Start))
        living.told(read)
        restored, again = HalvingProposer(overrides, 2), Scheduler()
        for each in log:
            restored.told(each)
            again.handle(each)
        assert restored.ask(1) == living.ask(1)
        assert again.snapshot == scheduler.snapshot

    def ask() -> None:
        while scheduler.vacant and (found := living.ask(scheduler.vacant)):
            for each in found:
                if isinstance(each, NewJob):
                    num = len([event for event in log if isinstance(event, Proposed)])
                    tell(Proposed(num, each.overrides, each.rungs))
                    tell(Queued((Unit((num,), rungs=each.rungs),)))
                else:
                    assert isinstance(each, Promote)
                    tell(Queued((Unit((each.num,), rungs=each.rungs),), "promoted"))

    tell(Began())
    tell(SlotsGained(tuple((index, "cpu") for index in range(slots))))
    ask()
    while at_work:
        unit: Any = at_work.pop(draw.randrange(len(at_work)))
        (num,) = unit.nums
        if unit.rungs is None:
            tell(Ended(num, "done", 1.0, values[num]))
        elif fails and num == 0:
            tell(Ended(num, "failed"))
        else:
            tell(Reported(num, 2, values[num]))
            tell(Paused(num))
        ask()
    states = [scheduler.state(num) for num in range(len(values))]
    reported = len(values) - fails
    assert states.count("done") == (max(1, reported // 2) if reported else 0)
    assert states.count("failed") == fails
