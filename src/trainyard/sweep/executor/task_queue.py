"""The queue of tasks: which task comes next, and on which slots."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.task import Task


@dataclass
class QueuedTask:
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


class TaskQueue:
    """The tasks that wait for a slot, or for several.

    Longest first, so that no long task is left for the end while slots stand idle (Graham, 1969, "Bounds on
    multiprocessing timing anomalies"). A task of unknown length could be the longest: those come before all others, in
    the order given. Tasks that come back wait behind those that have not had their turn. Nobody overtakes a task that
    waits for several slots: it would wait until the end.
    """

    def __init__(self, slots: Sequence[Slot], tasks: Iterable[Task]) -> None:
        self._slots = sorted(slots, key=lambda slot: slot.index)
        self._waiting = deque(new(task) for task in sorted(tasks, key=_seconds, reverse=True))
        self._alone: list[QueuedTask] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._alone)

    def take(self, running: Mapping[int, QueuedTask]) -> tuple[QueuedTask, tuple[Slot, ...]] | None:
        """The next task and its slots; None where no task can start now.

        Args:
            running: the tasks that run, by the index of each of their slots.
        """
        busy = Counter(slot.device for slot in self._slots if slot.index in running)
        reserved = {device for queued in running.values() for device in queued.alone_on}
        free = [slot for slot in self._slots if slot.index not in running and slot.device not in reserved]
        free.sort(key=lambda slot: busy[slot.device])  # the least busy device; the sort is stable
        for queued in self._alone:
            if not any(busy[device] or device in reserved for device in queued.alone_on):
                self._alone.remove(queued)
                return queued, _chosen([slot for slot in free if slot.device in queued.alone_on], queued.task.slots)
            reserved.update(queued.alone_on)  # it waits for these: nobody else starts on them
        free = [slot for slot in free if slot.device not in reserved]
        if self._waiting and (slots := _chosen(free, self._waiting[0].task.slots)):
            return self._waiting.popleft(), slots
        return None

    def put_back(self, queued: QueuedTask) -> None:
        """Another attempt at a task."""
        (self._alone if queued.alone_on else self._waiting).append(queued)

    def clear(self) -> list[QueuedTask]:
        """Takes all tasks out, in the order of their numbers."""
        tasks = [*self._waiting, *self._alone]
        self._waiting.clear()
        self._alone.clear()
        return sorted(tasks, key=lambda queued: queued.task.num)


def _chosen(free: Sequence[Slot], count: int) -> tuple[Slot, ...]:
    """The first so many of the slots, each on a CUDA device of its own; none where there are not so many."""
    chosen = {slot.index if slot.device == "cpu" else slot.device: slot for slot in reversed(free)}
    slots = [slot for slot in free if slot in chosen.values()][:count]
    return tuple(slots) if len(slots) == count else ()


def new(task: Task) -> QueuedTask:
    """A task that this run has not begun yet."""
    return QueuedTask(task, task.attempts)


def _seconds(task: Task) -> float:
    return float("inf") if task.expected_seconds is None else task.expected_seconds
