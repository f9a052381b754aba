"""Side of Optuna: its own loop, `study.ask`, `trial.report`, `trial.should_prune`, over simulated workers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import optuna
import side
from replay import Piece, Segment, Verdict, run
from table import CHOICES, INTEGERS, Problem


def point_of(problem: Problem, trial: optuna.Trial) -> dict[str, Any]:
    """Return what a trial suggests for each parameter."""
    point: dict[str, Any] = {}
    for each in problem.parameters:
        if each.kind == CHOICES:
            point[each.key] = trial.suggest_categorical(each.key, each.values)
        elif each.kind == INTEGERS:
            point[each.key] = trial.suggest_int(each.key, each.low, each.high, log=True)
        else:
            point[each.key] = trial.suggest_float(each.key, each.low, each.high, log=True)
    return point


def search(problem: Problem, seed: int, pruner: str) -> list[Piece]:
    """Replay a study with its default sampler and a pruner with its defaults."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruners: Mapping[str, Any] = {
        "none": optuna.pruners.NopPruner,
        "halving": optuna.pruners.SuccessiveHalvingPruner,
        "hyperband": partial(optuna.pruners.HyperbandPruner, max_resource=problem.epochs),
        "median": optuna.pruners.MedianPruner,
    }
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruners[pruner]())
    best: dict[int, float] = {}

    def ask() -> Segment:
        trial = study.ask()
        return Segment(trial, trial.number, point_of(problem, trial))

    def report(trial: Any, epoch: int, value: float, is_last: bool) -> Verdict:
        best[trial.number] = max(value, best.get(trial.number, value))
        trial.report(value, epoch)
        if is_last:
            study.tell(trial, best[trial.number])
            return "over"
        if trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return "over"
        return "on"

    return run(problem, ask, report)


METHODS = {
    f"Optuna, TPE{name}": partial(search, pruner=pruner)
    for name, pruner in {
        "": "none",
        " + successive halving": "halving",
        " + Hyperband": "hyperband",
        " + median": "median",
    }.items()
}

if __name__ == "__main__":
    side.main(METHODS)
