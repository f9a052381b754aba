"""Position of a job in its sweep, as set by the process that launched it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

PARAMETERS = "model/parameters"
"""Name under which a sweep can request the number of parameters of a model."""
RUNG = "rung"
"""Tag with the rung that a job has reached. In the journal, the tag follows all measurements at the rung."""
Returned = float | Mapping[str, float | None] | None
"""Result of a run: its best objective, None if it has none; or the numbers that its sweep requests, by name."""


@dataclass(frozen=True)
class Rungs:
    """Places of a training at which it reports the value of its objective to its sweep.

    Attributes:
        at: the epochs or iterations, in order. The training validates after each of them.
        by: `epoch` or `iter`.
        until: the position in `at` at which the training pauses; None if it continues to its end.
    """

    at: tuple[int, ...]
    by: Literal["epoch", "iter"] = "epoch"
    until: int | None = None


@dataclass(frozen=True)
class SweepPosition:
    """Position of a job in its sweep.

    Args:
        parent: the ID of the sweep's run (`RunInfo.id`); None if the sweep is not tracked.
        varying: the keys that differ between the jobs of the sweep. These and the group choices are the params of a
            job.
        name: the name of the run, composed of the varying keys.
        experiment: the experiment of the sweep's run; None for the one in the job's config.
        stack: the jobs of the stack in which the job trains (`0-15`); None if it trains alone.
        lane: the lane of the job in the stack.
        rungs: the positions at which the job reports; None if no reports are requested.
        metrics: the metrics that the job returns, by name; empty for its objective only.
        wake: a function that informs the sweep, from the job's process, that the job has reached a given position.
    """

    parent: str | None
    varying: tuple[str, ...]
    name: str
    experiment: str | None = None
    stack: str | None = None
    lane: int | None = None
    rungs: Rungs | None = None
    metrics: tuple[str, ...] = ()
    wake: Callable[[int], None] | None = None
