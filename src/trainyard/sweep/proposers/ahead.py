"""Trials that are suggested in advance, in a thread, while the slots are busy."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from trainyard.sweep.proposers.source import Source, Suggestion
from trainyard.sweep.proposers.trials import Trial


@dataclass(frozen=True)
class _Prepared:
    """A suggestion that is finished or in progress.

    Attributes:
        mark: the known state of the earlier trials.
    """

    mark: tuple[Any, ...]
    future: Future[Suggestion]


class AheadSource(Source):
    """Requests the next trials from another source in advance.

    Prepared trials are a function of the events so far, regardless of the time that they take.

    Args:
        source: the source of the trials.
        exact: whether a prepared trial is used only if nothing more is known now, so that each trial equals the
            suggestion of the other source. Otherwise, a trial may ignore results that arrived after it was prepared.
    """

    def __init__(self, source: Source, *, exact: bool) -> None:
        self.source = source
        self.waits = source.waits
        self._exact = exact
        self._prepared: dict[int, _Prepared] = {}
        self._pool: ThreadPoolExecutor | None = None

    def suggest(self, index: int, trials: Sequence[Trial]) -> Suggestion:
        found = self._prepared.get(index)
        if found is not None and (not self._exact or found.mark == _mark(trials)):
            return found.future.result()
        return self.source.suggest(index, trials)

    def prepare(self, count: int, trials: Sequence[Trial]) -> None:
        first = len(trials)
        mark = _mark(trials)
        before = self._prepared.get(first)
        if before is not None and (not self._exact or before.mark == mark):
            return
        for each in self._prepared.values():
            each.future.cancel()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "asked-ahead")
        known = [replace(trial, reports=dict(trial.reports)) for trial in trials]

        def suggest(index: int) -> Suggestion:  # one after another, each knows of those before it
            found = self.source.suggest(index, known)
            known.append(Trial(index, -1, found.overrides, found.note))
            return found

        self._prepared = {
            first + ahead: _Prepared(mark + (_RUNNING,) * ahead, self._pool.submit(suggest, first + ahead))
            for ahead in range(count)
        }

    def has_more(self, trials: Sequence[Trial], limit: int | None) -> bool:
        return self.source.has_more(trials, limit)

    def place(self, trial: Trial) -> Trial:
        return self.source.place(trial)

    def known(self, trial: Trial, trials: Sequence[Trial]) -> float | None:
        return self.source.known(trial, trials)


_RUNNING: tuple[Any, ...] = ("running", None, (), ())


def _mark(trials: Sequence[Trial]) -> tuple[Any, ...]:
    """Return the data from which a source may learn, as text because NaN is not equal to itself."""
    return tuple(
        _RUNNING
        if trial.state == "running" and not trial.reports
        else (trial.state, repr(trial.result), repr(trial.metrics), repr(trial.reports))
        for trial in trials
    )
