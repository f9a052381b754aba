"""Side of Ray Tune: its ASHA scheduler and its searchers, driven by hand over simulated workers, without a cluster."""

from __future__ import annotations

import itertools
import logging
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import side
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from replay import Piece, Segment, Verdict, run
from table import CHOICES, INTEGERS, Problem

VALUE, EPOCH = "accuracy", "training_iteration"


def domains(problem: Problem) -> dict[str, Any]:
    """Return the space as Ray's."""
    found: dict[str, Any] = {}
    for each in problem.parameters:
        if each.kind == CHOICES:
            found[each.key] = tune.choice(list(each.values))
        elif each.kind == INTEGERS:
            found[each.key] = tune.lograndint(each.low, each.high + 1)
        else:
            found[each.key] = tune.loguniform(each.low, each.high)
    return found


def search(problem: Problem, seed: int, sampler: str) -> list[Piece]:
    """Replay Ray's ASHA with its defaults, but for the length of a training."""
    logging.disable(logging.WARNING)
    space = domains(problem)
    scheduler = AsyncHyperBandScheduler(time_attr=EPOCH, metric=VALUE, mode="max", max_t=problem.epochs)
    searcher = OptunaSearch(space, metric=VALUE, mode="max", seed=seed) if sampler == "optuna" else None
    draws = np.random.RandomState(seed)
    numbers = itertools.count()

    def ask() -> Segment:
        number = next(numbers)
        trial = SimpleNamespace(trial_id=str(number), config=None)
        if searcher is None:
            point = {key: domain.sample(random_state=draws) for key, domain in space.items()}
        else:
            point = searcher.suggest(trial.trial_id)
        scheduler.on_trial_add(None, trial)
        return Segment(trial, number, point)

    def report(trial: Any, epoch: int, value: float, is_last: bool) -> Verdict:
        result = {VALUE: value, EPOCH: epoch}
        if not is_last:
            verdict = scheduler.on_trial_result(None, trial, result)
            if searcher is not None:
                searcher.on_trial_result(trial.trial_id, result)
            if verdict != TrialScheduler.STOP:
                return "on"
        else:
            scheduler.on_trial_complete(None, trial, result)
        if searcher is not None:
            searcher.on_trial_complete(trial.trial_id, result)
        return "over"

    return run(problem, ask, report)


METHODS = {
    "Ray Tune, random + ASHA": partial(search, sampler="random"),
    "Ray Tune, OptunaSearch + ASHA": partial(search, sampler="optuna"),
}

if __name__ == "__main__":
    side.main(METHODS)
