"""What the end of a task says about its jobs."""

from typing import Any

import pytest

from trainyard.sweep.events import Ended, Paused
from trainyard.sweep.executor.task import TaskOutcome
from trainyard.sweep.units import event_of


@pytest.mark.parametrize("state", ["interrupted", "lost", "paused"])
@pytest.mark.parametrize(("wish", "ended"), [("stop", "stopped"), ("prune", "pruned")])
def test_a_job_that_was_asked_to_end_has_ended_also_if_it_paused_at_a_rung_meanwhile(
    state: Any, wish: Any, ended: Any
) -> None:
    found = event_of(3, TaskOutcome(3, state, seconds=2.0), 1, wish)
    assert isinstance(found, Ended)
    assert (found.num, found.state, found.seconds) == (3, ended, 2.0)


@pytest.mark.parametrize("state", ["interrupted", "lost", "paused"])
def test_a_job_that_a_user_has_paused_is_paused_by_hand_also_at_a_rung(state: Any) -> None:
    assert event_of(3, TaskOutcome(3, state, seconds=2.0), 2, "pause") == Paused(3, 2.0, 2, by_hand=True)


def test_a_job_that_pauses_at_a_rung_is_not_paused_by_hand() -> None:
    assert event_of(3, TaskOutcome(3, "paused"), 1, None) == Paused(3)
    assert event_of(3, TaskOutcome(3, "interrupted"), 1, None) == Ended(3, "interrupted")
