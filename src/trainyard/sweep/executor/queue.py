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
        slot: the index of the last attempt's slot, or the first of several; -1 before the first.
        seconds: how long the last attempt took.
        alone_on: the devices that it must have for itself, since their memory was not enough for it and others.
    """

    task: Task
    attempts: int = 0
    slot: int = -1
    seconds: float = 0.0
    alone_on: tuple[str, ...] = ()


class Backlog:
    """The tasks that wait for a slot, or for several.

    Longest first, so that no long task is left for the end while slots stand idle (Graham, 1969, "Bounds on
    multiprocessing timing anomalies"). A task of unknown length could be the longest: those come before all others, in
    the order given. Tasks that come back wait behind those that have not had their turn. Nobody overtakes a task that
    waits for several slots: it would wait until the end.
    """

    def __init__(self, slots: Sequence[Slot], tasks: Iterable[Task]) -> None:
        self._slots = sorted(slots, key=lambda slot: slot.index)
        self._jobs = deque(new(task) for task in sorted(tasks, key=_seconds, reverse=True))
        self._alone: list[Job] = []

    def __len__(self) -> int:
        return len(self._jobs) + len(self._alone)

    def take(self, running: Mapping[int, Job]) -> tuple[Job, tuple[Slot, ...]] | None:
        """The next job and its slots; None where no job can start now.

        Args:
            running: the jobs that run, by the index of each of their slots.
        """
        busy = Counter(slot.device for slot in self._slots if slot.index in running)
        reserved = {device for job in running.values() for device in job.alone_on}
        free = [slot for slot in self._slots if slot.index not in running and slot.device not in reserved]
        free.sort(key=lambda slot: busy[slot.device])  # the least busy device; the sort is stable
        for job in self._alone:
            if not any(busy[device] or device in reserved for device in job.alone_on):
                self._alone.remove(job)
                return job, _chosen([slot for slot in free if slot.device in job.alone_on], job.task.slots)
            reserved.update(job.alone_on)  # it waits for these: nobody else starts on them
        free = [slot for slot in free if slot.device not in reserved]
        if self._jobs and (slots := _chosen(free, self._jobs[0].task.slots)):
            return self._jobs.popleft(), slots
        return None

    def put_back(self, job: Job) -> None:
        """Another attempt at a job."""
        (self._alone if job.alone_on else self._jobs).append(job)

    def clear(self) -> list[Job]:
        """Takes all jobs out, in the order of their numbers."""
        jobs = [*self._jobs, *self._alone]
        self._jobs.clear()
        self._alone.clear()
        return sorted(jobs, key=lambda job: job.task.num)


def _chosen(free: Sequence[Slot], count: int) -> tuple[Slot, ...]:
    """The first so many of the slots, each on a CUDA device of its own; none where there are not so many."""
    chosen = {slot.index if slot.device == "cpu" else slot.device: slot for slot in reversed(free)}
    slots = [slot for slot in free if slot in chosen.values()][:count]
    return tuple(slots) if len(slots) == count else ()


def new(task: Task) -> Job:
    """A task that this run has not begun yet."""
    return Job(task, task.attempts)


def _seconds(task: Task) -> float:
    return float("inf") if task.expected_seconds is None else task.expected_seconds
