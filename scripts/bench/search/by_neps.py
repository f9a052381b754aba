"""Side of NePS: its algorithms by ask and tell, over simulated workers.

A configuration that is promoted goes on from its checkpoint. NePS promotes some while they still train for the rung
before: they have no checkpoint yet, and begin anew.
"""

from __future__ import annotations

import logging
import random
from functools import partial
from typing import Any

import neps
import side
import torch
from replay import Piece, Segment, Verdict, run
from table import CHOICES, INTEGERS, Problem

EPOCH = "epochs"


def space_of(problem: Problem) -> Any:
    """Return the space as NePS's; a name has no dots in it."""
    found: dict[str, Any] = {EPOCH: neps.IntegerFidelity(lower=1, upper=problem.epochs)}
    for place, each in enumerate(problem.parameters):
        if each.kind == CHOICES:
            found[f"p{place}"] = neps.Categorical(choices=tuple(each.values))
        else:
            kind = neps.Integer if each.kind == INTEGERS else neps.Float
            found[f"p{place}"] = kind(lower=each.low, upper=each.high, log=True)
    return type("Space", (neps.PipelineSpace,), found)()


def search(problem: Problem, seed: int, algorithm: str) -> list[Piece]:
    """Replay an algorithm with its defaults."""
    logging.disable(logging.WARNING)
    torch.manual_seed(seed)
    random.seed(seed)
    own = neps.AskAndTell(getattr(neps.algorithms, algorithm)(space_of(problem)))
    keys = [parameter.key for parameter in problem.parameters]
    numbers: dict[str, int] = {}  # of the configuration, by the id
    trained: dict[str, int] = {}  # epochs of those that have ended, by the id

    def ask() -> Segment:
        trial = own.ask()
        before = trial.metadata.previous_trial_id
        numbers[trial.id] = len(numbers) if before is None else numbers[before]
        values = dict(trial.config)
        point = {key: values[f"p{place}"] for place, key in enumerate(keys)}
        return Segment(trial, numbers[trial.id], point, trained.get(before, 0), int(values[EPOCH]))

    def report(trial: Any, epoch: int, value: float, is_last: bool) -> Verdict:
        if is_last:
            trained[trial.id] = epoch
            own.tell(trial, -value)
        return "on"

    return run(problem, ask, report)


METHODS = {
    "NePS, ASHA": partial(search, algorithm="asha"),
    "NePS, asynchronous Hyperband": partial(search, algorithm="async_hb"),
}

if __name__ == "__main__":
    side.main(METHODS)
