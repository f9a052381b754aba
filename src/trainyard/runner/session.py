"""The journals of a run, opened and closed around what is done in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from trainyard.runner.contract import RunState
from trainyard.runner.env import describe
from trainyard.track import Status

log = logging.getLogger(__name__)


@contextmanager
def session(runner: RunState) -> Iterator[None]:
    """Open every member's journal, tell the hooks, and write how each run ended.

    Raises:
        TrainyardError: a directory holds a run already, or another process trains in it.
    """
    status: Status = "FAILED"
    message = ""
    begun = False
    try:
        for member in runner.members:
            log.info("On %s, seed %d.", describe(runner.device), member.seed, extra={"member": member})
            if runner.strategy.is_main:
                member.open(runner.tracker, resume=bool(runner.resume))
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
            for solo in runner.arranged:
                solo.members[0].close(status, message)
