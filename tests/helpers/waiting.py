"""Waiting for other processes, on a machine as busy as may be."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT = 600.0
"""Seconds for which a test waits for what must come: a hang takes so long, and nothing else does."""
FOREVER = 3600
"""Seconds for which a process sleeps that is to be ended by somebody else: longer than any test waits."""


def until(condition: Callable[[], Any], process: subprocess.Popen[Any] | None = None) -> Any:
    """Wait until the condition holds, and return what it gave; the process that is to bring it about must be alive."""
    end = time.monotonic() + LIMIT
    while True:
        ended = process is not None and process.poll() is not None
        if found := condition():
            return found
        if ended:
            assert process is not None
            raise AssertionError(process.communicate())
        if time.monotonic() > end:
            raise TimeoutError(f"waited for {LIMIT:g} s in vain")
        time.sleep(0.01)


def is_alive(pid: int | str) -> bool:
    """Whether there is such a process: not one that has ended and that its parent has not noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until_gone(*pids: int | str) -> None:
    """Wait until none of these processes is left."""
    until(lambda: not any(map(is_alive, pids)))


class Clock:
    """A clock to be told the time by: stands still until it is told to go on.

    Args:
        passes: time passes while this holds, by a tenth of a second for each look at the clock.
        end: the time at which it stands still for good.
    """

    def __init__(self, passes: Callable[[], object] = lambda: False, end: float = float("inf")) -> None:
        self.now = 0.0
        self._passes = passes
        self._end = end

    def monotonic(self) -> float:
        if self.now < self._end and self._passes():
            self.now += 0.1
        return self.now

    @staticmethod
    def time() -> float:
        return time.time()
