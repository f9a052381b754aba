"""Protocol of executors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from trainyard.sweep.executor.task import Task, TaskOutcome


class Executor(ABC):
    """Runs tasks, each in a process of its own, and returns their outcomes.

    with LocalExecutor(find_slots()) as executor:  # the agent starts
        tasks = plan(...)                          # while this process does other work
        outcomes = executor.run(tasks)
    """

    def start(self) -> None:  # noqa: B027 (not every executor has something to start)
        """Begin preparations that take time, and return at once. Without it, `run` makes them, and waits."""

    @abstractmethod
    def run(self, tasks: Sequence[Task]) -> list[TaskOutcome]:
        """Run all tasks.

        Returns:
            The outcome of each, in the order of `tasks`. A task that fails raises nothing.
        """

    def close(self) -> None:  # noqa: B027
        """End what `start` began, and every task that still runs."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
