"""Trials of a search: configurations, what is known of each, and what is decided on it next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TrialState = Literal["running", "paused", "done", "failed", "pruned"]


@dataclass
class Trial:
    """A configuration of a search, as far as the search has taken notice of it.

    Attributes:
        index: its number among the trials, from 0; repeats of a configuration share one.
        num: the number of its job.
        overrides: the overrides of that job.
        note: what was recorded with it.
        state: `running` until a result of its last segment is taken notice of; `paused` at a rung.
        reports: the values of the objective, by place.
        result: the objective of the whole training; None before it ends, and if there is none. Of several, the first.
        metrics: what the whole training returned, by name: the objective, or several, and what constraints bound. At a
            rung, what is known of that by then.
        violation: by how much its last report violates constraints, altogether; 0 for what is not known.
        rung: the number of rungs that it has reached.
        repeat: its number among the repeats of its configuration, from 0.
        results: of the repeats of a configuration that is one trial, whose result is their mean.
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
        """What is known of its objective: its result, or else the last report."""
        if self.result is not None or not self.reports:
            return self.result
        return self.reports[max(self.reports)]


@dataclass(frozen=True)
class Outcome:
    """How a segment of a job ended: from its start, or a rung, to the next rung or its end.

    Attributes:
        state: `paused` at a rung, `done`, or `failed`.
        at: the rung.
        value: the objective reported there, or that of the whole training.
        metrics: what the whole training returned, or what was reported beside the value.
    """

    state: Literal["paused", "done", "failed"]
    at: int | None = None
    value: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Segment:
    """A decision of a search: a job is to run from its start, or from a rung.

    Attributes:
        num: the number of the job.
        until: the rung at which it pauses; None if it goes on to its end.
        outcome: how it ended; None while it has not.
    """

    num: int
    until: int | None
    outcome: Outcome | None = None


def loss(value: float | None, sign: float) -> float:
    """Return a value of the objective as one of which less is better; infinity for none and for NaN.

    Args:
        value: the value.
        sign: 1 where less is better, -1 where more is.
    """
    return math.inf if value is None or math.isnan(value) else sign * value
