"""Interface of sources, from which the trials of a search come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainyard.sweep.proposers.trials import Trial


@dataclass(frozen=True)
class Suggestion:
    """Overrides of a trial, and plain data that is returned to the source with it."""

    overrides: tuple[str, ...]
    note: Mapping[str, Any] = field(default_factory=dict)


class Source(ABC):
    """Source of the trials of a search.

    Attributes:
        waits: whether several trials may wait for one result, so that trials can follow after `has_more` was false.
        listed: the overrides of all trials, if they are known from the start; None if they are chosen later.
    """

    waits = False
    listed: Sequence[Sequence[str]] | None = None

    @abstractmethod
    def suggest(self, index: int, trials: Sequence[Trial]) -> Suggestion:
        """Return the trial with a number. The same arguments give the same trial.

        Args:
            index: the number of the trial.
            trials: all earlier trials, with the results that the search has processed.
        """

    def has_more(self, trials: Sequence[Trial], limit: int | None) -> bool:
        """Return whether there is a trial to suggest now.

        Args:
            trials: all trials so far.
            limit: `Limits.n_trials`.
        """
        return limit is None or len(trials) < limit

    def prepare(self, count: int, trials: Sequence[Trial]) -> None:  # noqa: B027 (most are fast)
        """Prepare the next trials, which will be requested when a slot is free.

        Args:
            count: their number.
            trials: all trials so far.
        """

    def place(self, trial: Trial) -> Trial:
        """Return a suggested trial, with its number for pruners."""
        return trial

    def known(self, trial: Trial, trials: Sequence[Trial]) -> float | None:
        """Return the known objective of a trial's configuration, for `Limits.target`."""
        return trial.value


class ListSource(Source):
    """Trials that are known from the start: a grid.

    Args:
        jobs: the overrides of each job.
    """

    def __init__(self, jobs: Sequence[Sequence[str]]) -> None:
        self.listed: Sequence[Sequence[str]] = jobs

    def suggest(self, index: int, trials: Sequence[Trial]) -> Suggestion:
        return Suggestion(tuple(self.listed[index]))
