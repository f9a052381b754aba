"""Backoff after failures."""

from __future__ import annotations

import time

PATIENCE = 5.0  # seconds for which a shipper whose trainer is gone keeps retrying without success


class Backoff:
    """Delays before retries: none after a success, and growing delays after failures."""

    def __init__(self) -> None:
        self._limit = 30.0  # seconds
        self._delay = 0.0
        self._due = 0.0
        self._since = 0.0
        self._tried = True

    @property
    def failing(self) -> bool:
        return self._delay > 0

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._due

    @property
    def hopeless(self) -> bool:
        """True if all attempts have failed for longer than `PATIENCE`, and at least one since `hurry()`."""
        return self.failing and self._tried and time.monotonic() - self._since > PATIENCE

    def succeeded(self) -> None:
        self._delay = self._due = 0.0

    def failed(self) -> None:
        now = time.monotonic()
        if not self.failing:
            self._since = now
        self._delay = min(max(0.5, 2 * self._delay), self._limit)
        self._due = now + self._delay
        self._tried = True

    def hurry(self) -> None:
        """Retry now, and often, because the trainer has ended, and a user may be waiting."""
        self._limit = 1.0
        self._due = 0.0
        self._tried = False
