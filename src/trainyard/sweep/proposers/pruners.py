"""Pruners, which decide which trials continue beyond a rung.

Each receives the outcomes in the order in which the search processes them, and decides only from these.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from trainyard.checks import choice, integer
from trainyard.errors import ConfigError
from trainyard.sweep.proposers.trials import Trial, loss
from trainyard.track.sweep_position import Rungs

By = Literal["epoch", "iter"]
UNITS = {"epoch": "epoch", "iter": "iter"}


class Pruner(ABC):
    """Decides which trials continue.

    Attributes:
        places: the first rungs, in order, for checks.
    """

    places: Sequence[int] = ()
    by: By = "epoch"

    def begin(self, sign: float, pauses: bool) -> None:
        """Receive the settings of the search.

        Args:
            sign: 1 if lower is better, -1 if higher is better.
            pauses: whether a trial must pause at each rung, so that the search decides on it in its own order.
        """
        self.sign = sign

    @abstractmethod
    def rungs(self, index: int, reached: int) -> Rungs | None:
        """Return the next rungs at which a trial reports and pauses.

        Args:
            index: the trial's number.
            reached: the number of rungs that it has reached.
        """

    def reported(self, trial: Trial, at: int) -> bool:
        """Receive the report of a trial; return whether a trial that does not pause continues."""
        return True

    def promotable(self) -> Trial | None:
        """Return the paused trial to continue first; None if none can continue before more is known."""
        return None

    def left(self, trial: Trial) -> None:  # noqa: B027 (not every pruner has to know)
        """Record that a trial is no longer paused: it was promoted, pruned, or resumed by a user."""

    def ended(self, trial: Trial) -> None:  # noqa: B027 (not every pruner has to know)
        """Record the end of a trial with this `state`."""

    def hopeless(self, coming: float) -> Iterator[Trial]:
        """Yield each paused trial that will not continue, regardless of the reports of other trials.

        Args:
            coming: the number of running and future trials; infinity if unknown.
        """
        yield from ()

    def best_paused(self) -> Trial | None:
        """Return the best of the trials at the highest rung, if it is paused."""
        return None


class NoPruner(Pruner):
    """Lets every trial train to its end."""

    def rungs(self, index: int, reached: int) -> Rungs | None:
        return None


class _Entry(NamedTuple):
    """Trial at a rung. Those that keep all constraints come first, then those that violate them least."""

    violation: float
    loss: float
    trial: int

    @property
    def is_comparable(self) -> bool:
        """Whether its value can be the best one."""
        return max(self.violation, self.loss) < math.inf


@dataclass
class _Rung:
    """Trials that have reported at a rung.

    Attributes:
        ranked: all of them, best first.
        waiting: the trials that are paused there, best first.
        at: the place.
    """

    at: int
    ranked: list[_Entry] = field(default_factory=list)
    waiting: list[_Entry] = field(default_factory=list)


class Asha(Pruner):
    """Asynchronous successive halving: the best trials of each rung continue as soon as enough have reported there.

    Rungs are `first`, `first * eta`, `first * eta**2`, …. Of the n trials that have reported at a rung, the best
    n / eta are promoted, rounded down at the first rung and up at later rungs. A trial that does not continue is paused
    and can be promoted later, from its checkpoint, so no epoch is trained twice. (Li et al., "A System for Massively
    Parallel Hyperparameter Tuning", MLSys 2020, Algorithm 2. The algorithm rounds down at every rung, so that the best
    trial of a later rung waits until `eta` trials have reached this rung.)

    Args:
        first: the epoch, or iteration, of the first rung.
        eta: one of `eta` trials is promoted.
        by: `epoch` or `iter`.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(self, first: int = 1, eta: int = 3, by: str = "epoch") -> None:
        self._first = integer("first", first, at_least=1)
        self._eta = integer("eta", eta, at_least=2)
        self.by = choice("by", by, UNITS)  # type: ignore[assignment]
        self.places = [self._first * self._eta**rung for rung in range(3)]
        self._trials: dict[int, Trial] = {}
        self._brackets: dict[int, list[_Rung]] = {}

    def bracket(self, index: int) -> int:
        """Return the bracket of a trial: the number of rungs at which it does not pause."""
        return 0

    def rungs(self, index: int, reached: int) -> Rungs | None:
        at = self._first * self._eta ** (self.bracket(index) + reached)
        return Rungs((at,), self.by, until=at)

    def reported(self, trial: Trial, at: int) -> bool:
        rungs = self._brackets.setdefault(self.bracket(trial.index), [])
        while len(rungs) < trial.rung:
            rungs.append(_Rung(at))
        entry = self._entry(trial)
        insort(rungs[trial.rung - 1].ranked, entry)
        insort(rungs[trial.rung - 1].waiting, entry)
        self._trials[trial.index] = trial
        return True

    def promotable(self) -> Trial | None:
        for rungs in self._brackets.values():
            for index, rung in reversed([*enumerate(rungs)]):
                best = rung.ranked[: self._promoted(index, len(rung.ranked))]
                if rung.waiting and best and rung.waiting[0] <= best[-1] and rung.waiting[0].is_comparable:
                    return self._trials[rung.waiting[0].trial]
        return None

    def left(self, trial: Trial) -> None:
        entry = self._entry(trial)
        if trial.rung and entry in (waiting := self._brackets[self.bracket(trial.index)][trial.rung - 1].waiting):
            waiting.remove(entry)

    def hopeless(self, coming: float) -> Iterator[Trial]:
        for rungs in self._brackets.values():
            more = coming
            for index, rung in enumerate(rungs):
                most = math.inf if math.isinf(more) else self._promoted(index, len(rung.ranked) + int(more))
                left = [entry for entry in rung.waiting if bisect_left(rung.ranked, entry) >= max(1, most)]
                more += len(rung.waiting) - len(left)  # any of which may come to the next rung
                yield from (self._trials[entry.trial] for entry in left)

    def best_paused(self) -> Trial | None:
        top = [rungs[-1] for rungs in self._brackets.values() if rungs and rungs[-1].waiting]
        top.sort(key=lambda rung: (-rung.at, rung.waiting[0]))
        found = next((rung.waiting[0] for rung in top), None)
        return self._trials[found.trial] if found is not None and found.is_comparable else None

    def _promoted(self, rung: int, reported: int) -> int:
        """Return how many of the trials that have reported at a rung are promoted."""
        return -(-reported // self._eta) if rung else reported // self._eta

    def _entry(self, trial: Trial) -> _Entry:
        return _Entry(trial.violation, loss(trial.value, self.sign), trial.index)


class Hyperband(Asha):
    """Asynchronous Hyperband: several brackets of successive halving run in parallel, each with a later first rung.

    The number of trials of a bracket follows from its share of Hyperband's budget, and trials are distributed to the
    brackets in turn. (Li et al., "Hyperband", JMLR 2018; asynchronous as in MLSys 2020.)

    Args:
        last: the length of the entire training; `auto` reads it from the config (`loop.max_epochs`, `loop.max_iters`).
        first, eta, by: see `Asha`.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(self, last: int, first: int = 1, eta: int = 3, by: str = "epoch") -> None:
        super().__init__(first, eta, by)
        last = integer("last", last, at_least=1)
        if last < self._first:
            raise ConfigError("first", first, f"a rung of at most {last}, the length of the training")
        most = 0
        while self._first * self._eta ** (most + 1) <= last:
            most += 1
        # The first rung of bracket b is first * eta**b. Its share, as in Hyperband's Algorithm 1 with s = most - b:
        shares = [math.ceil((most + 1) / (most + 1 - each) * self._eta ** (most - each)) for each in range(most + 1)]
        self._turns = _in_turn(shares)

    def bracket(self, index: int) -> int:
        return self._turns[index % len(self._turns)]


def _in_turn(shares: Sequence[int]) -> list[int]:
    """Return the numbers of brackets, each as often as its share, spread evenly."""
    places = [((turn + 0.5) / share, bracket) for bracket, share in enumerate(shares) for turn in range(share)]
    return [bracket for _, bracket in sorted(places)]
