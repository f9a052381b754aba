"""A job of a stack is charged its share of the time."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainyard.sweep.conclude import _row
from trainyard.sweep.entry import Entry


def test_a_job_of_a_stack_has_a_share_of_its_seconds() -> None:
    job: Any = SimpleNamespace(num=0, choices={}, overrides=(), directory=Path("0"))
    for width, seconds in ((1, 8.0), (4, 2.0)):
        entry = Entry([], state="done", objective=0.5, seconds=8.0, width=width)
        plan: Any = SimpleNamespace(entries={0: entry}, keys=[])
        assert _row(job, plan, None, in_population=False).seconds == seconds


def test_members_of_a_population_are_not_repeats() -> None:
    plan: Any = SimpleNamespace(entries={0: Entry([]), 1: Entry([])}, keys=[])
    jobs: list[Any] = [SimpleNamespace(num=num, choices={}, overrides=(), directory=Path()) for num in range(2)]
    for in_population, count in ((True, 2), (False, 1)):
        assert len({_row(job, plan, None, in_population=in_population).history for job in jobs}) == count
