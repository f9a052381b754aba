"""Iteration timer: seconds per iteration, and seconds of waiting for data."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

from trainyard.runner import Runner
from trainyard.runner.hook import Hook


class IterTimer(Hook):
    """Records the mean seconds per iteration (`time`) and per wait for a batch (`data_time`) since the last point.

    The times do not include validations and the validation turns of a workflow. On CUDA, the hook measures host time:
    kernels may still be running at the end of an iteration.
    """

    priority = "NORMAL"
    stackable = True
    own_places = own_epochs = True

    def __init__(self) -> None:
        self._last = 0
        self._total = 0
        self._waited = 0
        self._mean_waited = 0.0
        self._count = 0

    def before_train(self, runner: Runner) -> None:
        runner.gauges["time"] = self._time
        runner.gauges["data_time"] = self._data_time
        self._total = self._waited = self._count = 0
        self._mean_waited = 0.0

    def before_train_epoch(self, runner: Runner) -> None:
        self._last = perf_counter_ns()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any) -> None:
        self._waited += perf_counter_ns() - self._last

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        now = perf_counter_ns()
        self._total += now - self._last
        self._last = now
        self._count += 1

    def after_val(self, runner: Runner) -> None:
        self._last = perf_counter_ns()

    def after_val_loss(self, runner: Runner, losses: Any) -> None:
        self._last = perf_counter_ns()

    def _time(self) -> float:
        """Return the mean time and reset the window for both gauges; this one is registered, and read, first."""
        count = self._count or 1
        mean = self._total // count / 1e9  # integer nanoseconds: few digits, which the journal writes fast
        self._mean_waited = self._waited // count / 1e9
        self._total = self._waited = self._count = 0
        return mean

    def _data_time(self) -> float:
        return self._mean_waited
