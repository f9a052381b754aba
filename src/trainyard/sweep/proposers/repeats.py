"""Repeats: each configuration of a search is trained with several seeds, unless it is raced out earlier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

from trainyard.sweep.proposers.given_settings import SEED
from trainyard.sweep.proposers.source import Source, Suggestion
from trainyard.sweep.proposers.trials import Trial, loss

NOTE = "repeat"  # in a note: the numbers of the configuration and of the repeat
LEVEL = 0.05
"""A configuration is raced out by a one-sided test at this level."""
ENDED = ("done", "failed", "held")
"""States of repeats for which other repeats do not wait."""


class RepeatedSource(Source):
    """Trains each configuration of another source with the seeds `seed`, `seed + 1`, ….

    The repeats of a configuration start in groups of 1, 2, 4, …: each group when the previous one has ended, unless the
    configuration has been raced out. (The doubling is that of SMAC's `Intensify`: Hutter et al., "Sequential
    Model-Based Optimization for General Algorithm Configuration", LION 2011.) A configuration is raced out when its
    mean is significantly worse than the best mean of all repeats, by a one-sided t test with the pooled variance of the
    better half of the configurations whose repeats have all ended. (A t race: Birattari et al., "A Racing Algorithm for
    Configuring Metaheuristics", GECCO 2002; the variance is pooled, because a configuration has only one value at
    first.)

    The other source sees one trial for each configuration: its objective is the mean of the finished repeats. A pruner
    judges the first repeat; the others start when the first has reached its end, and train to their end.

    Args:
        source: the source of the configurations.
        repeats: the number of seeds of each configuration.
        seed: the first seed.
        sign: 1 if a lower objective is better, -1 if a higher one is.
    """

    waits = True

    def __init__(self, source: Source, repeats: int, seed: int, sign: float = 1.0) -> None:
        self._source = source
        self._repeats = repeats
        self._seed = seed
        self._sign = sign

    def has_more(self, trials: Sequence[Trial], limit: int | None) -> bool:
        found = _configurations(trials)
        return limit is None or len(found) < limit or self._next(found) is not None

    def suggest(self, index: int, trials: Sequence[Trial]) -> Suggestion:
        found = _configurations(trials)
        own = self._next(found)
        if own is not None:
            return self._suggestion(Suggestion(own[0].overrides), own[0].index, len(own))
        return self._suggestion(self._source.suggest(len(found), list(map(_whole, found))), len(found), 0)

    def prepare(self, count: int, trials: Sequence[Trial]) -> None:
        self._source.prepare(count, list(map(_whole, _configurations(trials))))

    def place(self, trial: Trial) -> Trial:
        index, repeat = trial.note[NOTE]
        return replace(trial, index=index, repeat=repeat)

    def known(self, trial: Trial, trials: Sequence[Trial]) -> float | None:
        own = [each for each in trials if each.index == trial.index]
        return self._mean(own) if self._is_complete(own) else None

    def _suggestion(self, found: Suggestion, index: int, repeat: int) -> Suggestion:
        seed = str(self._seed + repeat)
        keys = [line.partition("=")[0] for line in found.overrides]
        given = next((place for place, key in enumerate(keys) if key.lstrip("+") == SEED), None)
        own = list(found.overrides)
        if given is None:
            own.append(f"{SEED}={seed}")
        else:
            own[given] = f"{keys[given]}={seed}"
        return Suggestion(tuple(own), {**found.note, NOTE: [index, repeat]})

    def _next(self, found: Sequence[Sequence[Trial]]) -> Sequence[Trial] | None:
        """Return the first configuration of which a repeat can start."""
        best, variance, degrees = None, 0.0, 0
        complete = sorted((own for own in found if self._is_complete(own)), key=self._mean_loss)
        if complete and math.isfinite(self._mean_loss(complete[0])):
            best = complete[0]
            better = [own for own in complete[: -(-len(complete) // 2)] if math.isfinite(self._mean_loss(own))]
            degrees = sum(len(self._losses(own)) - 1 for own in better)
            squares = [(each - self._mean_loss(own)) ** 2 for own in better for each in self._losses(own)]
            variance = math.fsum(squares) / degrees if degrees else 0.0
        for own in found:
            if not self._is_waiting(own):
                continue
            begins_group = (len(own) + 1) & len(own) == 0  # 1, 3, 7, … have begun
            if not begins_group:
                return own
            if best is None or not self._is_worse(own, best, variance, degrees):
                return own
        return None

    def _is_waiting(self, own: Sequence[Trial]) -> bool:
        """Return whether another repeat can start: in a group that has started, or after one that has ended."""
        if len(own) >= self._repeats or any(each.state == "pruned" for each in own):
            return False
        before = own[: (1 << (len(own) + 1).bit_length() - 1) - 1]  # the groups that have begun wholly
        return all(each.state in ENDED for each in before)

    def _is_worse(self, own: Sequence[Trial], best: Sequence[Trial], variance: float, degrees: int) -> bool:
        mine, its = self._losses(own), self._losses(best)
        if not mine:
            return False
        margin = 0.0
        if variance:
            from scipy.special import stdtrit  # type: ignore[import-untyped,unused-ignore]

            margin = float(stdtrit(degrees, 1 - LEVEL)) * math.sqrt(variance * (1 / len(mine) + 1 / len(its)))
        return self._mean_loss(own) > self._mean_loss(best) + margin

    def _is_complete(self, own: Sequence[Trial]) -> bool:
        ended = [each for each in own if each.state in ENDED]
        return len(ended) == self._repeats and bool(self._losses(own))

    def _losses(self, own: Sequence[Trial]) -> list[float]:
        return [loss(each.result, self._sign) for each in own if each.result is not None]

    def _mean_loss(self, own: Sequence[Trial]) -> float:
        return fmean(self._losses(own))

    def _mean(self, own: Sequence[Trial]) -> float:
        return self._sign * self._mean_loss(own)


def _configurations(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Return the repeats of each configuration, in order."""
    found: dict[int, list[Trial]] = {}
    for trial in trials:
        index, _ = trial.note[NOTE]
        found.setdefault(index, []).append(trial)
    return list(found.values())


def _whole(own: Sequence[Trial]) -> Trial:
    """Return a configuration as one trial."""
    first = own[0]
    results = [each.result for each in own if each.result is not None]
    if results:
        return replace(first, state="done", result=fmean(results), results=tuple(results))
    states = {each.state for each in own}
    state: Literal["running", "failed"] = "running" if "running" in states else "failed"
    return first if len(own) == 1 else replace(first, state=state)
