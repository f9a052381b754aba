"""Quick check of a training, `quick=true`: two batches of each split, one checkpoint, resuming from it, no tracking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainyard.checks import is_integer
from trainyard.data.limits import KEYS
from trainyard.runner import Runner
from trainyard.runner.hook import Hook

BATCHES = 2
_LENGTHS = {"max_epochs": 2, "max_iters": 2 * BATCHES}
"""Minimum lengths, so that iterations are left when the run is resumed."""
_INTERVALS = {"val_begin": 1, "val_interval": 1, "dynamic_intervals": None, "workflow": None}


def quickly(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a quick check: no tracker, few batches, a validation after them. Schedules are not changed.

    Args:
        values: the resolved config of the run.
    """
    limit = dict.fromkeys(KEYS.values(), BATCHES)
    loop = values.get("loop")
    if isinstance(loop, Mapping):
        own = _INTERVALS | ({"val_interval": BATCHES, "val_begin": 1} if "max_iters" in loop else {})
        own |= {key: least for key, least in _LENGTHS.items() if is_integer(loop.get(key), at_least=1, at_most=least)}
        loop = {**loop, **{key: value for key, value in own.items() if key in loop}}
    return {**values, "tracker": None, "limit": limit, "loop": loop}


class EndEarly(Hook):
    """Ends a training after its first validation, or after its first batches if there is none.

    Args:
        resumes: whether the run is resumed afterwards: it is then interrupted, as by a signal; otherwise, it stops.
    """

    priority = "LOWEST"
    stackable = True

    def __init__(self, *, resumes: bool) -> None:
        self.resumes = resumes
        self._batches = 0

    def after_val(self, runner: Runner) -> None:
        if runner.training:
            self._end(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self._batches += 1  # an epoch may have one batch
        if self._batches >= BATCHES and not runner.has_split("val"):
            self._end(runner)

    def _end(self, runner: Runner) -> None:
        if self.resumes:
            runner.interrupt()
            return
        for member in runner.members:
            member.stop("quick=true")
