"""Estimate of the time that a training still takes: one for the log and for the progress bar."""

from __future__ import annotations

from datetime import timedelta
from time import perf_counter


class TimeLeft:
    """Time left, by the pace since the training began (validations and checkpoints included).

    Args:
        iteration: at which it began, or went on.
        total: the number of iterations in the whole run; None if unknown.
    """

    def __init__(self, iteration: int, total: int | None) -> None:
        self._first = iteration
        self._total = total
        self._began = perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return perf_counter() - self._began

    def after(self, iteration: int) -> str:
        """Return the time left after an iteration: `0:01:05`, or `unknown`."""
        done = iteration - self._first
        if self._total is None or iteration > self._total or done <= 0:
            return "unknown"
        return str(timedelta(seconds=round(self.seconds / done * (self._total - iteration))))
