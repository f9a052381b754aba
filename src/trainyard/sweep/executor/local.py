"""Executor for this machine: a process for each task, forked from an agent that has torch imported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from trainyard.checks import boolean, integer, number
from trainyard.errors import ConfigError
from trainyard.sweep.executor.agent import Agent
from trainyard.sweep.executor.base import Executor
from trainyard.sweep.executor.slots import Slot, capacity, environment
from trainyard.sweep.executor.task import Task, TaskEvent, TaskOutcome
from trainyard.sweep.executor.task_loop import Policy, TaskLoop


class LocalExecutor(Executor):
    """Runs tasks on the slots of this machine, each in a process of its own that ends with it. Linux only.

    A task may take several slots: it waits until enough are free, and the tasks behind it wait too.

    A task that raises fails, and is reported at once; the others continue. If a task's process is killed, only that
    attempt is lost. If it runs out of CUDA memory, it is tried again once, uncounted, with its device for itself.
    When a task's process ends, the rest of its process group is killed.

    The first SIGINT or SIGTERM to this process, where `run` is in its main thread, passes SIGTERM on to every task, so
    that it can save a checkpoint, and starts no more. The second kills all tasks, and `run` raises KeyboardInterrupt.
    When this process is killed, its tasks are killed too.

    Args:
        slots: the slots that tasks run on, one at a time on each.
        retries: further attempts at a task that fails or is lost.
        timeout: seconds that an attempt may take. Then it gets SIGTERM, after `grace` SIGKILL, and is not tried again.
        fail_fast: when a task has failed finally, stop the others: SIGTERM, and SIGKILL after `grace`.
        grace: seconds from SIGTERM to SIGKILL.
        preload: modules to import before workers are forked. They must not touch CUDA or start threads on import.
        on_event: called in this process, in order, with each event of a task. If it raises, the run ends.
        on_tick: called about every 0.2 s while tasks run. If it raises, the run ends.

    Attributes:
        signum: the first signal that the last run got; None if it got none.

    Raises:
        ConfigError: a value is out of range; from `run`, tasks share a number, or a preloaded module cannot be
            imported.
        ExecutorError: from `run`, the agent cannot be started.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        *,
        retries: int = 0,
        timeout: float | None = None,
        fail_fast: bool = False,
        grace: float = 30.0,
        preload: Sequence[str] = ("torch",),
        on_event: Callable[[TaskEvent], object] | None = None,
        on_tick: Callable[[], object] | None = None,
    ) -> None:
        if not slots or len({slot.index for slot in slots}) < len(slots):
            raise ConfigError("slots", [slot.index for slot in slots], "one or more, each with an index of its own")
        integer("retries", retries, at_least=0)
        if timeout is not None:
            number("timeout", timeout, above=0, unit="seconds", other="null for never")
        boolean("fail_fast", fail_fast)
        number("grace", grace, at_least=0, unit="seconds")
        for slot in slots:
            environment([slot], os.environ)
        self.slots = tuple(slots)
        self.policy = Policy(retries, timeout, fail_fast, grace)
        self.preload = tuple(preload)
        self.on_event = on_event
        self.on_tick = on_tick
        self.signum: int | None = None
        self._agent: Agent | None = None
        self._loop: TaskLoop | None = None

    def start(self) -> None:
        if self._agent is None:
            self._agent = Agent(self.preload, max(slot.threads for slot in self.slots))

    def run(self, tasks: Sequence[Task], policy: Policy | None = None) -> list[TaskOutcome]:
        """Run all tasks like `Executor.run`.

        Args:
            tasks: the tasks to run.
            policy: the policy for these tasks; None for this executor's own.
        """
        if len({task.num for task in tasks}) < len(tasks):
            raise ConfigError("tasks", [task.num for task in tasks], "tasks with a number of their own each")
        widest, limit = max((task.slots for task in tasks), default=1), capacity(self.slots)
        if widest > limit:
            raise ConfigError("tasks", widest, f"tasks of at most {limit} slots")
        keep = self._agent is not None
        self.start()
        assert self._agent is not None
        with _signals_caught() as caught:
            try:
                self._loop = TaskLoop(
                    self._agent, self.slots, tasks, policy or self.policy, caught, self.on_event, self.on_tick
                )
                outcomes = self._loop.outcomes()
            except BaseException:
                keep = False  # tasks still run and are killed
                raise
            finally:
                self._loop = None
                self.signum = caught[0] if caught else None
                if not keep:
                    self.close()
        return [outcomes[task.num] for task in tasks]

    def add(self, task: Task) -> None:
        """Add a task, from a callback of `run`; its outcome is passed only to the callbacks."""
        assert self._loop is not None
        self._loop.add(task)

    def stop(self, why: str) -> None:
        """End the run, from a callback of `run`, as a failed task does with `fail_fast`."""
        assert self._loop is not None
        self._loop.stop(why)

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()
            self._agent = None


@contextmanager
def _signals_caught() -> Iterator[list[int]]:
    """Yield a list that SIGINTs and SIGTERMs are appended to; they have no other effect meanwhile."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)

    before = {each: signal.signal(each, note) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
