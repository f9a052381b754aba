"""Sweeps in simulated time: a proposer and the scheduler, without processes and files. For tests and benchmarks."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainyard.sweep.events import (
    FINAL,
    Began,
    Ended,
    Event,
    Inherited,
    Paused,
    Proposed,
    Queued,
    Reported,
    SlotsGained,
    Start,
    Unit,
)
from trainyard.sweep.proposers.base import NewJob, Promote, Proposer, Prune
from trainyard.sweep.scheduler import Scheduler


@dataclass(frozen=True)
class SimulatedJob:
    """A training whose values are known.

    Attributes:
        values: the objective after each epoch.
        seconds: the duration of an epoch.
        result: the result of the entire training; None for the last value.
        metrics: the values that are reported in addition.
    """

    values: Sequence[float]
    seconds: float = 1.0
    result: Any = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class SimulatedSweep:
    """Runs the jobs that a proposer proposes.

    Args:
        make: creates the proposer, at the start and after each kill.
        job: returns the job for a number and overrides.
        slots: the number of jobs at a time.

    Attributes:
        log: the events, as in a manifest.
        now: seconds since the start.
        epochs: the number of trained epochs of each job.
        spent: the total number of trained epochs.
        reports: the time, the job, the epoch and the value of each report and of each end.
    """

    def __init__(
        self, make: Callable[[], Proposer], job: Callable[[int, tuple[str, ...]], SimulatedJob], slots: int
    ) -> None:
        self.log: list[Event] = []
        self.now = 0.0
        self.epochs: dict[int, int] = {}
        self.spent = 0
        self.reports: list[tuple[float, int, int, float]] = []
        self._make = make
        self._job = job
        self._slots = slots
        self._jobs: dict[int, SimulatedJob] = {}
        self._overrides: dict[int, tuple[str, ...]] = {}
        self._order = itertools.count()
        self._begin()

    def state(self, num: int) -> str | None:
        """Return the state of a job."""
        return self._scheduler.state(num)

    def run(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Continue until nothing is left, or until a condition holds, which is checked after each event of a job.

        Returns:
            Whether nothing is left.
        """
        while True:
            while (free := self._scheduler.vacant) and (proposals := self.proposer.ask(free)):
                for each in proposals:
                    self._take(each)
            if not self._coming:
                return True
            self._next()
            if until():
                return False

    def kill(self) -> None:
        """Kill the head and all running tasks, and restart from the log."""
        log, self.log = self.log, []
        self._begin(log)

    # -- the head ------------------------------------------------------------------------------------------------------

    def _begin(self, log: Sequence[Event] = ()) -> None:
        self.proposer = self._make()
        self._scheduler = Scheduler()
        self._coming: list[tuple[float, int, int, Unit]] = []  # time, order, epoch
        for event in log:
            self.log.append(event)
            self._scheduler.handle(event)
            self.proposer.told(event)
        self._tell(Began())
        for num in self._overrides:
            if (state := self._scheduler.state(num)) not in FINAL and state != "paused":
                self._tell(Queued((Unit((num,), rungs=self._scheduler.rungs.get(num)),)))
        self._tell(SlotsGained(tuple((index, "cpu") for index in range(self._slots))))

    def _tell(self, event: Event) -> None:
        self.log.append(event)
        actions = self._scheduler.handle(event)
        self.proposer.told(event)
        for action in actions:
            if isinstance(action, Start):
                self._train(action.unit)

    def _take(self, proposal: NewJob | Promote | Prune) -> None:
        match proposal:
            case NewJob(overrides, _, rungs, note):
                num = len(self._overrides)
                self._overrides[num], self._jobs[num] = overrides, self._job(num, overrides)
                self._tell(Proposed(num, overrides, rungs, note=note))
                self._tell(Queued((Unit((num,), rungs=rungs),)))
            case Promote(num, rungs, source, overrides):
                if source is not None:
                    self._tell(Inherited(num, source, self.epochs[num], overrides))
                    self._overrides[num], self._jobs[num] = overrides, self._job(num, overrides)
                self._tell(Queued((Unit((num,), rungs=rungs),), "promoted"))
            case Prune(num, why):
                self._tell(Ended(num, "pruned", error=why))

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def _train(self, unit: Unit) -> None:
        """Let a job train to its next rung, or to its end."""
        (num,) = unit.nums
        job, done = self._jobs[num], self.epochs.get(num, 0)
        left = () if unit.rungs is None else (at for at in unit.rungs.at if at > done)
        epoch = min([len(job.values), *left])
        at = self.now + (epoch - done) * job.seconds
        heapq.heappush(self._coming, (at, next(self._order), epoch, unit))

    def _next(self) -> None:
        self.now, _, epoch, unit = heapq.heappop(self._coming)
        (num,) = unit.nums
        job = self._jobs[num]
        self.spent += epoch - self.epochs.get(num, 0)
        self.epochs[num] = epoch
        value = job.values[epoch - 1]
        is_done = epoch == len(job.values)
        if is_done:
            value = value if job.result is None else job.result
        self.reports.append((self.now, num, epoch, value))
        if is_done:
            self._tell(Ended(num, "done", 0.0, value))
            return
        assert unit.rungs is not None
        self._tell(Reported(num, epoch, value, tuple(job.metrics.items())))
        if epoch == unit.rungs.until:
            self._tell(Paused(num))
        elif self.proposer.judge(num, epoch, value) == "prune":
            self._tell(Ended(num, "pruned", 0.0, value))
        else:
            self._train(unit)
