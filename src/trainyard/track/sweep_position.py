"""Position of a job in its sweep, as set by the process that launched it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

PARAMETERS = "model/parameters"
"""Name under which a sweep can ask for the number of the parameters of a model."""
RUNG = "rung"
"""Tag of the rung that a job has reached. In the journal it follows all that was measured there."""
Returned = float | Mapping[str, float | None] | None
"""What a run returns: its best objective, None if it has none; or the numbers that its sweep asks for, by name."""


@dataclass(frozen=True)
class Rungs:
    """Places of a training at which it reports the value of its objective to its sweep.

    Attributes:
        at: the epochs, or iterations, in order. Each is one after which the training validates.
        by: `epoch` or `iter`.
        until: the one of them at which it pauses; None if it goes on to its end.
    """

    at: tuple[int, ...]
    by: Literal["epoch", "iter"] = "epoch"
    until: int | None = None


@dataclass(frozen=True)
class SweepPosition:
    """Position of a job in its sweep.

    Args:
        parent: the id of the sweep's own run (`RunInfo.id`); None where the sweep is not tracked.
        varying: the keys that differ between the sweep's jobs: these, and the group choices, are a job's params.
        name: the run's name, made of the varying keys.
        experiment: that of the sweep's own run; None: the one of the job's config.
        stack: the jobs of the stack that it trains in (`0-15`); None if it trains alone.
        lane: its lane there.
        rungs: where the job reports; None if nobody asks.
        metrics: what the job returns by name; empty for its objective alone.
        wake: informs the sweep, from the job's process, that the job has reached a given position.
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
