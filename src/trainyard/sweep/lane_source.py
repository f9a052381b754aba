"""Source of jobs for the free lanes of a stack, in the stack's process: it asks the head, through its line.

Messages to the head, each a JSON object with one of these keys:

- `want`: the number of free lanes; with `wait`, whether none is occupied. Answered by a pickled `Given`; with `wait`
  only when there is a job, or none will come.
- `placed`: for each job its number, its lane, its epoch and its iteration; with `width`. Answered when it is recorded.
- `left`: the number of a job that has left; with its `state`, `value` and `error`.
- `refused`: the number of a job that cannot train in the stack; with the `reason`.
- `unfed`: no job will join or leave this stack.

The head may send a `Leave` at any time.

The number of a job is its index among all jobs that the stack has received, from 0.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from trainyard.sweep.executor.wake import Line, LineClosedError
from trainyard.sweep.sweepable import JobResult
from trainyard.track.sweep_position import SweepPosition

_LOOK = 0.2  # seconds between two looks at whether the stack was interrupted

MOST = 1000
"""Maximum number of lanes in one message."""


@dataclass(frozen=True)
class Given:
    """Answer to a stack that has asked for jobs.

    Attributes:
        first: the number of the first job.
        jobs: the values of each job's config, and its directory: `trainyard.sweep.worker_tasks.StackedJob`.
        positions: the position of each in the sweep.
        closed: whether no more jobs will come.
    """

    first: int
    jobs: Sequence[Any]
    positions: Sequence[SweepPosition]
    closed: bool


@dataclass(frozen=True)
class Leave:
    """Request that a job leaves a stack.

    Attributes:
        index: the number of the job.
        pauses: whether it continues later; otherwise, it ends.
    """

    index: int
    pauses: bool


class LaneSource:
    """Jobs that the head gives to a stack: a `trainyard.fused.job_lanes.JobSource`.

    Args:
        line: the line to the head.
        begin: creates the config of a joining job, with its files, and its position.
        end: called with the number of a job that has left, and its result.
    """

    def __init__(
        self,
        line: Line,
        begin: Callable[[Any, SweepPosition, int], tuple[DictConfig, SweepPosition]],
        end: Callable[[int, JobResult], object],
    ) -> None:
        self._line = line
        self._begin = begin
        self._end = end
        self._leaving: list[Leave] = []
        self._next_look = 0.0
        self.closed = False

    def take(
        self, count: int, *, wait: bool, interrupted: Callable[[], bool]
    ) -> Iterator[tuple[int, DictConfig, SweepPosition]]:
        """Yield the next jobs: the number of each, its config, which may become that of the next one, and its
        position."""
        self._line.say({"want": count, "wait": wait})
        while (given := self._heard(_LOOK)) is None:
            if interrupted():
                self.closed = True
                return
        self.closed = given.closed
        for number, (job, position) in enumerate(zip(given.jobs, given.positions, strict=True), given.first):
            yield number, *self._begin(job, position, number)

    def placed(self, places: Sequence[tuple[int, int, int, int]], width: int) -> None:
        """Record in which lanes jobs train from here on."""
        for first in range(0, len(places), MOST):
            self._line.say({"placed": places[first : first + MOST], "width": width})
            while self._heard(_LOOK) is None:
                pass
        self.closed = False  # of a stack that was cut other lanes may become free

    def asked(self) -> Sequence[tuple[int, bool]]:
        """Return the numbers of jobs that must leave, each once, and whether each pauses."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK
            with suppress(LineClosedError):  # the next question says so
                while self._line.is_ready():
                    self._heard(0)
        found, self._leaving = self._leaving, []
        return [(leave.index, leave.pauses) for leave in found]

    def unfed(self) -> None:
        """Report that no job joins or leaves this stack."""
        self._line.say({"unfed": True})

    def _heard(self, timeout: float) -> Any:
        """Return the next answer, or None if there is none; a request that arrives before it is recorded."""
        packet = self._line.hear(timeout)
        if not packet:
            return packet
        found = pickle.loads(packet)
        if isinstance(found, Leave):
            self._leaving.append(found)
            return None
        return found

    def left(self, number: int, result: JobResult) -> None:
        """Report how a job has ended, or that it pauses."""
        self._end(number, result)
        self._line.say({"left": number, "state": result.state, "value": result.value, "error": result.error})

    def refused(self, number: int, reason: str) -> None:
        """Report that a job cannot train in this stack."""
        self._line.say({"refused": number, "reason": reason[:1000]})


@dataclass(frozen=True)
class Left:
    """Result of a job that has left, as the head reads it: a `JobResult`."""

    state: Any
    value: Any = None
    error: str | None = None

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> Left:
        """Return the result in a message."""
        return cls(message["state"], message["value"], message["error"])
