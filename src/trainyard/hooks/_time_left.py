"""Estimate of the remaining time of a training, for the log and the progress bar."""

from __future__ import annotations

from datetime import timedelta
from time import perf_counter


class TimeLeft:
    """Remaining time, from the pace since the training started (including validations and checkpoints).

    Args:
        iteration: the iteration at which it started or continued.
    """

    def __init__(self, iteration: int) -> None:
        self._first = iteration
        self._began = perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the training started."""
        return perf_counter() - self._began

    def after(self, iteration: int, further: int | None) -> str:
        """Return the time for further iterations after an iteration, such as `0:01:05`; `unknown` if their number is
        unknown.

        Args:
            iteration: the finished iteration, counted like the first one.
            further: the number of further iterations; unknown if None, or if below zero because the number was an
                estimate.
        """
        done = iteration - self._first
        if further is None or further < 0 or done <= 0:
            return "unknown"
        return str(timedelta(seconds=round(self.seconds / done * further)))
