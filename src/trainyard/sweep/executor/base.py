"""Interface of executors: slots that come and go, and processes on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.executor.slots import Slot, capacity
from trainyard.sweep.executor.task import Task, TaskState


@dataclass(frozen=True)
class Gained:
    """There are additional slots."""

    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Lost:
    """Slots were lost. The tasks on them have already ended."""

    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Launched:
    """A task's process has started."""

    number: int
    pid: int | None = None


@dataclass(frozen=True)
class Woken:
    """A task has a report: its job with this index has reached a position in its training."""

    number: int
    index: int
    at: int


@dataclass(frozen=True)
class Said:
    """A task has sent a message of plain data."""

    number: int
    message: Any


@dataclass(frozen=True)
class Finished:
    """The process of a task has ended.

    Attributes:
        state: how the attempt ended: see `TaskOutcome`.
        value: the return value of the task.
        error: the reason, on one line; None when done.
        traceback: the exception's traceback.
        seconds: its duration.
        began: False if there was no process, because the task could not be sent to one.
        out_of_memory: `device` or `host` if that memory was too small.
        peak: its peak memory in bytes; 0 if unknown.
        moved: whether it was asked to end because its slots are about to be lost.
    """

    number: int
    state: TaskState
    value: Any = None
    error: str | None = None
    traceback: str | None = None
    seconds: float = 0.0
    began: bool = True
    out_of_memory: Literal["", "device", "host"] = ""
    peak: int = 0
    moved: bool = False


ExecutorEvent = Gained | Lost | Launched | Woken | Said | Finished


class Executor(ABC):
    """Provides slots, and runs each task in a separate process.

    The scheduler, not the executor, decides which task runs on which slot.
    """

    slots: tuple[Slot, ...]
    """All slots that can exist at the same time. Plans use them even if they are not available yet."""

    @property
    @abstractmethod
    def started(self) -> bool:
        """Whether `start` was called, and `close` was not called after it."""

    @property
    def room(self) -> int:
        """Maximum number of slots of one task."""
        return capacity(self.slots)

    @property
    def here(self) -> bool:
        """Whether tasks run on this machine, so that only its devices are available."""
        return True

    @property
    def shares_disk(self) -> bool:
        """Whether all tasks can read each other's files. If not, a task uses one machine, and no jobs join it."""
        return True

    def start(self) -> None:  # noqa: B027 (not every executor has something to start)
        """Start preparations that take time, and return immediately. Events report slots when they are available."""

    @property
    @abstractmethod
    def ready(self) -> tuple[Slot, ...]:
        """The slots that are available now."""

    def expect(self, slots: int) -> None:  # noqa: B027 (slots of a machine are all there)
        """Set the number of slots for which there are running or waiting tasks."""

    @abstractmethod
    def launch(self, number: int, task: Task, slots: Sequence[int], policy: Policy) -> None:
        """Start a task on free slots.

        Args:
            number: the number that identifies it in events.
            task: the task.
            slots: the indices of the slots.
            policy: the policy, of which the executor uses `timeout` and `grace`.
        """

    @abstractmethod
    def end(self, numbers: Iterable[int], grace: float | None) -> None:
        """End tasks: SIGTERM, and SIGKILL after `grace` seconds (if it is None, when `timeout` is over)."""

    @abstractmethod
    def answer(self, number: int, content: bytes) -> None:
        """Send an answer to a task; do nothing if it has ended."""

    @abstractmethod
    def wait(self, timeout: float) -> list[ExecutorEvent]:
        """Return the new events, in order; wait a limited number of seconds for the first event."""

    def close(self) -> None:  # noqa: B027
        """End all processes that `start` started, and all running tasks."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
