"""Estimate of the time that a training still takes: one for the log and for the progress bar."""

from __future__ import annotations

from datetime import timedelta
from time import perf_counter


class TimeLeft:
    """Time left, by the pace since the training began (validations and checkpoints included).

    Args:
        iteration: at which it began, or went on.
    """

    def __init__(self, iteration: int) -> None:
        self._first = iteration
        self._began = perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return perf_counter() - self._began

    def after(self, iteration: int, further: int | None) -> str:
        """Return the time that further iterations take after an iteration: `0:01:05`; `unknown` where their number is.

        Args:
            iteration: that has been finished, as the first one is counted.
            further: None, or below zero where the number was an estimate: unknown.
        """
        done = iteration - self._first
        if further is None or further < 0 or done <= 0:
            return "unknown"
        return str(timedelta(seconds=round(self.seconds / done * further)))
