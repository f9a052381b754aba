"""Sessions: journals opened and closed around a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainyard import console
from trainyard.runner.env import describe
from trainyard.track import Status

if TYPE_CHECKING:
    from trainyard.runner.runner import Runner

log = logging.getLogger(__name__)


@contextmanager
def session(runner: Runner) -> Iterator[None]:
    """Open every member's journal, call the hooks, and record how each run ended.

    Raises:
        TrainyardError: a directory already contains a run, or another process trains in it.
    """
    status: Status = "FAILED"
    message = ""
    begun = False
    console.show_lines()
    try:
        for member in runner.all_members:
            log.info("On %s, seed %d.", describe(runner.device), member.seed, extra={"member": member})
            if runner.strategy.is_main:
                member.open(runner.tracker, resume=bool(member.resume))
        runner.strategy.gather(None)  # no rank writes before rank 0 has removed what a killed process left
        begun = True
        runner.call("before_run")
        yield
        status, message = ("KILLED", "interrupted") if runner.interrupted else ("FINISHED", "")
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        message = f"{type(error).__name__}: {error}"
        raise
    finally:
        try:
            if begun:
                runner.call("after_run")
        finally:
            for member in runner.all_members:
                member.close(status, message)
