"""Trials at the highest rung that enough of them have reached, from which a sampler learns in a search with rungs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from trainyard.sweep.proposers.trials import Trial

END = math.inf
"""The rung of trials that have trained to their end."""


def at_highest_rung(trials: Sequence[Trial], least: int, whole: int = 0) -> tuple[list[Trial], bool]:
    """Return the trials that have reached a rung, each with its value there as its result, and new ones.

    The rung is the highest one that at least `least` trials have reached, or the lowest one if there is none. Values
    at different rungs are not compared. (Falkner et al., "BOHB", ICML 2018, section 3.2.)

    Args:
        trials: all trials.
        least: the number of trials that a rung needs.
        whole: the number of trials of other searches that have trained to their ends.

    Returns:
        The trials, and whether the rung is the end of the training.
    """
    values = [_by_rung(trial) for trial in trials]
    counts = Counter(at for own in values for at in own)
    counts[END] += whole
    rung = max((at for at in counts if counts[at] >= least), default=min(counts))
    found = []
    for trial, own in zip(trials, values, strict=True):
        if rung in own:
            found.append(replace(trial, state="done", result=own[rung], reports={}))
        elif trial.state == "running" and not own:
            found.append(trial)
    return found, rung == END


def _by_rung(trial: Trial) -> dict[float, float]:
    """Return the values of a trial, by the rung."""
    if trial.state == "failed":
        return {}
    known = {float(at): value for at, value in trial.reports.items()}
    if trial.state == "done" and trial.result is not None:
        known[END] = trial.result
    return known
