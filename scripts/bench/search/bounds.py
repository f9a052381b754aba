"""Bounds of the time to a value near the best known one: searches that know in advance what a search cannot know."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from replay import NEAR, WORKERS
from table import CHOICES, INTEGERS, Problem


def fastest(problem: Problem, seed: int) -> float:
    """Return the time of the configuration that reaches the value first, if it starts at once."""
    return float(_times(problem).min())


def best_at_once(problem: Problem, seed: int) -> float:
    """Return the time of the configuration with the best final value, if it starts at once."""
    return float(_times(problem)[problem.values.max(axis=1).argmax()])


def foresight(problem: Problem, seed: int) -> float:
    """Return the time of a search over random configurations whose pruner never errs.

    After one epoch the pruner knows whether a configuration will reach the value. All other configurations end there.
    """
    draws = np.random.default_rng(seed)
    times, reached = _times(problem), math.inf
    free = [0.0] * WORKERS
    while free[0] < reached:
        index = problem.index(_point(problem, draws))
        if math.isinf(times[index]):
            heapq.heapreplace(free, free[0] + problem.seconds[index])
        else:
            reached = min(reached, free[0] + times[index])
            heapq.heapreplace(free, reached)
    return float(reached)


BOUNDS: Mapping[str, Callable[[Problem, int], float]] = {
    "the fastest configuration, started at once": fastest,
    "the best configuration, started at once": best_at_once,
    "random configurations, pruned without an error after one epoch": foresight,
}


def _times(problem: Problem) -> np.ndarray:
    """Return the time after which each configuration reaches the value; infinity for those that never do."""
    near = problem.values >= NEAR * problem.best
    return np.where(near.any(axis=1), (near.argmax(axis=1) + 1) * problem.seconds, math.inf)


def _point(problem: Problem, draws: np.random.Generator) -> dict[str, Any]:
    point: dict[str, Any] = {}
    for each in problem.parameters:
        if each.kind == CHOICES:
            point[each.key] = each.values[draws.integers(len(each.values))]
        else:
            half = 0.5 if each.kind == INTEGERS else 0.0  # each integer as often as in the searches
            value = math.exp(draws.uniform(math.log(each.low - half), math.log(each.high + half)))
            point[each.key] = round(value) if each.kind == INTEGERS else value
    return point
