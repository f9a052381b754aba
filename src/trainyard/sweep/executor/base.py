"""What every executor offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from trainyard.sweep.executor.task import Task, TaskOutcome


class Executor(ABC):
    """Runs tasks, each in a process of its own, and says what became of each.

    with LocalExecutor(find_slots()) as executor:  # the workers' home gets ready
        tasks = plan(...)                          # while this process does other things
        outcomes = executor.run(tasks)
    """

    def start(self) -> None:  # noqa: B027 (not every executor has something to start)
        """Begins what takes a while to be ready, and returns at once. Without it `run` does so, and waits."""

    @abstractmethod
    def run(self, tasks: Sequence[Task]) -> list[TaskOutcome]:
        """Runs all tasks.

        Returns:
            The outcome of each, in the order of `tasks`. A task that fails raises nothing.
        """

    def close(self) -> None:  # noqa: B027
        """Ends what `start` began, and every task that still runs."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
