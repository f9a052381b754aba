"""The conclusion of a sweep: the rows of its jobs, and errors in its output."""

import errno
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainyard.files import DiskFullError
from trainyard.sweep.conclude import _reported, _row, _told_held
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


def test_a_complete_message_is_shown_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    full = DiskFullError("report.html", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "`write` writes the report")
    for error, told in (
        (full, str(full)),
        (OSError("no"), "The report of the sweep could not be written: OSError: no"),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING), _reported("report"):
            raise error
        assert caplog.messages == [told]


def test_a_sweep_without_the_file_of_its_application_is_continued_by_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
    told = "A user has paused #3. To resume the job, run `trainyard sweep resume s 3`, and then "
    assert _told_held([3], Path("s")) == f"{told}run `trainyard sweep resume s`."
    monkeypatch.delattr(sys.modules["__main__"], "__file__")
    assert _told_held([3], Path("s")) == f"{told}use the same command with hydra.sweep.dir=s."
