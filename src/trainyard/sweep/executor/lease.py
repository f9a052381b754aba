"""Lease of a sweep's head: only one process at a time, on any machine, places agents."""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from trainyard.errors import TrainyardError
from trainyard.sweep.executor.meeting import FOLDER, AliveFile, read_head
from trainyard.sweep.steering import run_elsewhere

_HOLDER = "of_the_head"
_LOCK = "lock"
EVERY = 1.0
"""Seconds between two heartbeats of a head."""
WATCHED = 6.0
"""Seconds for which the heartbeat of another head is watched."""


class HeadLease:
    """Lease of a sweep's directory. A thread shows that its holder lives, and sees whether another has taken over.

    On one machine, and over file systems that have locks, a lock decides. Otherwise, a heartbeat decides: whether it
    changes is observed for some seconds on the clock of this machine, regardless of the clocks of other machines. A
    head that was delayed for so long that another one has taken over finds a higher fencing number than its own.

    Args:
        directory: the sweep's directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / FOLDER / _HOLDER
        self._alive = AliveFile(directory, _HOLDER, directory / FOLDER / _HOLDER, EVERY)
        self._fence: int | None = None
        self._lock = -1
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, name="trainyard lease", daemon=True)
        self.lost = False

    def take(self) -> None:
        """Take the lease.

        Raises:
            TrainyardError: another process has it.
        """
        (self._directory / FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self._directory / FOLDER / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refusal() from None
        except OSError:
            pass  # a file system without locks
        seen = self._seen()
        until = time.monotonic() + WATCHED
        while seen is not None and time.monotonic() < until:
            time.sleep(EVERY / 4)
            if self._seen() not in (seen, None):
                raise self._refusal()
        self._thread.start()

    def fenced(self, fence: int) -> None:
        """Record the fencing number of this head."""
        self._fence = fence

    def release(self) -> None:
        """Release the lease."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
            if not self.lost:
                self._alive.remove()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _refusal(self) -> TrainyardError:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        return run_elsewhere(self._directory)

    def _seen(self) -> str | None:
        with suppress(OSError):
            return self._path.read_text()
        return None

    def _show(self) -> None:
        while not self._ended.wait(EVERY / 2):
            with suppress(OSError, ValueError, json.JSONDecodeError):
                if self._fence is not None and read_head(self._directory).fence > self._fence:
                    self.lost = True
                    return
            self._alive.tick()
