"""Trials of a search: configurations, their known results, and the decisions about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TrialState = Literal["running", "paused", "held", "done", "failed", "pruned"]


@dataclass
class Trial:
    """A configuration of a search, with the results that the search has processed.

    Attributes:
        index: its number among the trials, from 0; repeats of a configuration share one.
        num: the number of its job.
        overrides: the overrides of that job.
        note: the data recorded with it.
        state: `running` until a result of its last segment is processed; `paused` at a rung; `held` if a user has
            paused it, until a user resumes it.
        reports: the values of the objective, by place.
        result: the objective of the entire training (the first of several); None before it ends, or if there is none.
        metrics: the results of the entire training, by name: the objectives and the bounded metrics. At a rung, the
            values known at that time.
        violation: the total constraint violation of its last report; 0 if unknown.
        rung: the number of rungs that it has reached.
        repeat: its number among the repeats of its configuration, from 0.
        results: the results of the repeats of a configuration, whose mean is the result of the trial.
    """

    index: int
    num: int
    overrides: tuple[str, ...]
    note: Mapping[str, Any]
    state: TrialState = "running"
    reports: dict[int, float] = field(default_factory=dict)
    result: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    violation: float = 0.0
    rung: int = 0
    repeat: int = 0
    results: tuple[float, ...] = ()

    @property
    def value(self) -> float | None:
        """The known value of its objective: its result, otherwise its last report."""
        if self.result is not None or not self.reports:
            return self.result
        return self.reports[max(self.reports)]


@dataclass(frozen=True)
class Outcome:
    """How a segment of a job ended: from its start, or a rung, to the next rung or its end.

    Attributes:
        state: `paused` at a rung, `held` (paused by a user), `done`, or `failed`.
        at: the rung, if it has reported there.
        value: the objective reported at the rung, or that of the entire training.
        metrics: the results of the entire training, or the values reported in addition to the objective.
    """

    state: Literal["paused", "held", "done", "failed"]
    at: int | None = None
    value: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Segment:
    """A decision of a search: a job runs from its start, or from a rung.

    Attributes:
        num: the number of the job.
        until: the rung at which it pauses; None if it continues to its end.
        outcome: how it ended; None while it has not.
    """

    num: int
    until: int | None
    outcome: Outcome | None = None


def loss(value: float | None, sign: float) -> float:
    """Return a value of the objective as a number to minimize; infinity for missing values and NaN.

    Args:
        value: the value.
        sign: 1 if lower is better, -1 if higher is better.
    """
    return math.inf if value is None or math.isnan(value) else sign * value
