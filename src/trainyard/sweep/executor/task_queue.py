"""Queue of tasks: it chooses the next task and its slots."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.task import Task


@dataclass
class QueuedTask:
    """Task with its history.

    Attributes:
        attempts: attempts begun; one that ran out of CUDA memory beside others is not counted.
        slot: the index of the last attempt's slot, or the first of several; -1 before the first.
        seconds: the duration of the last attempt.
        alone_on: the devices that it needs exclusively, because their memory was too small for it beside others.
    """

    task: Task
    attempts: int = 0
    slot: int = -1
    seconds: float = 0.0
    alone_on: tuple[str, ...] = ()


class TaskQueue:
    """Tasks that wait for one or several slots.

    The longest comes first, so that no long task remains at the end while slots are idle (Graham, 1969, "Bounds on
    multiprocessing timing anomalies"). A task of unknown length could be the longest: those come before all others, in
    the order given. Retried tasks wait behind those that have not started yet. No task overtakes one that waits for
    several slots: that one would wait until the end.
    """

    def __init__(self, slots: Sequence[Slot], tasks: Iterable[Task]) -> None:
        self._slots = sorted(slots, key=lambda slot: slot.index)
        self._waiting = deque(new(task) for task in sorted(tasks, key=_seconds, reverse=True))
        self._alone: list[QueuedTask] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._alone)

    def take(self, running: Mapping[int, QueuedTask]) -> tuple[QueuedTask, tuple[Slot, ...]] | None:
        """Return the next task and its slots; None if no task can start now.

        Args:
            running: the tasks that run, by the index of each of their slots.
        """
        busy = Counter(slot.device for slot in self._slots if slot.index in running)
        reserved = {device for queued in running.values() for device in queued.alone_on}
        free = [slot for slot in self._slots if slot.index not in running and slot.device not in reserved]
        free.sort(key=lambda slot: busy[slot.device])  # least busy device first; the sort is stable
        for queued in self._alone:
            if not any(busy[device] or device in reserved for device in queued.alone_on):
                self._alone.remove(queued)
                return queued, _chosen([slot for slot in free if slot.device in queued.alone_on], queued.task.slots)
            reserved.update(queued.alone_on)  # no other task starts on the slots that it waits for
        free = [slot for slot in free if slot.device not in reserved]
        if self._waiting and (slots := _chosen(free, self._waiting[0].task.slots)):
            return self._waiting.popleft(), slots
        return None

    def put_back(self, queued: QueuedTask) -> None:
        """Put a task back for another attempt."""
        (self._alone if queued.alone_on else self._waiting).append(queued)

    def clear(self) -> list[QueuedTask]:
        """Remove and return all tasks, in the order of their numbers."""
        tasks = [*self._waiting, *self._alone]
        self._waiting.clear()
        self._alone.clear()
        return sorted(tasks, key=lambda queued: queued.task.num)


def _chosen(free: Sequence[Slot], count: int) -> tuple[Slot, ...]:
    """Return the first `count` slots, each on a CUDA device of its own; an empty tuple if there are too few."""
    chosen = {slot.index if slot.device == "cpu" else slot.device: slot for slot in reversed(free)}
    slots = [slot for slot in free if slot in chosen.values()][:count]
    return tuple(slots) if len(slots) == count else ()


def new(task: Task) -> QueuedTask:
    """Return the queue entry of a task that this run has not begun yet."""
    return QueuedTask(task, task.attempts)


def _seconds(task: Task) -> float:
    return float("inf") if task.expected_seconds is None else task.expected_seconds
