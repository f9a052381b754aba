"""Which task comes next, and where."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainyard.sweep.jobs import Slot, Task


@dataclass
class Job:
    """A task and its history.

    Attributes:
        attempts: attempts begun; one that ran out of CUDA memory beside others is not counted.
        slot: the index of the last attempt's slot; -1 before the first.
        seconds: how long the last attempt took.
        alone_on: the device that it must have for itself, since its memory was not enough for it and others.
    """

    task: Task
    attempts: int = 0
    slot: int = -1
    seconds: float = 0.0
    alone_on: str | None = None


class Backlog:
    """The tasks that wait for a slot.

    Longest first, so that no long task is left for the end while slots stand idle (Graham, 1969, "Bounds on
    multiprocessing timing anomalies"). A task of unknown length could be the longest: those come before all others, in
    the order given. Tasks that come back wait behind those that have not had their turn.
    """

    def __init__(self, slots: Sequence[Slot], tasks: Iterable[Task]) -> None:
        self._slots = sorted(slots, key=lambda slot: slot.index)
        self._jobs = deque(new(task) for task in sorted(tasks, key=_seconds, reverse=True))
        self._alone: dict[str, deque[Job]] = {}

    def __len__(self) -> int:
        return len(self._jobs) + sum(len(jobs) for jobs in self._alone.values())

    def take(self, running: Mapping[int, Job]) -> tuple[Job, Slot] | None:
        """The next job and its slot; None where no job can start now.

        Args:
            running: the jobs that run, by the index of their slot.
        """
        busy = Counter(slot.device for slot in self._slots if slot.index in running)
        reserved = {job.alone_on for job in running.values()}
        free = [slot for slot in self._slots if slot.index not in running and slot.device not in reserved]
        free.sort(key=lambda slot: busy[slot.device])  # the least busy device; the sort is stable
        for slot in free:
            if alone := self._alone.get(slot.device):
                if not busy[slot.device]:
                    return alone.popleft(), slot
            elif self._jobs:
                return self._jobs.popleft(), slot
        return None

    def put_back(self, job: Job) -> None:
        """Another attempt at a job."""
        (self._jobs if job.alone_on is None else self._alone.setdefault(job.alone_on, deque())).append(job)

    def clear(self) -> list[Job]:
        """Takes all jobs out, in the order of their numbers."""
        jobs = [*self._jobs, *(job for waiting in self._alone.values() for job in waiting)]
        self._jobs.clear()
        self._alone.clear()
        return sorted(jobs, key=lambda job: job.task.num)


def new(task: Task) -> Job:
    """A task that this run has not begun yet."""
    return Job(task, task.attempts)


def _seconds(task: Task) -> float:
    return float("inf") if task.expected_seconds is None else task.expected_seconds
