"""Running tasks to their end on an executor: the trial of jobs, the probe of stacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainyard.errors import ConfigError, counted
from trainyard.sweep.events import Ended, Proposed, Queued, Unit
from trainyard.sweep.executor.base import Executor
from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.executor.task import EventKind, Task, TaskEvent, TaskOutcome
from trainyard.sweep.loop import Loop
from trainyard.sweep.scheduler import RunningUnit, Scheduler


@dataclass(frozen=True)
class Callbacks:
    """Functions that are called in this process while tasks run. If one raises an error, the run ends.

    Attributes:
        on_event: called in order with each event of a task.
        on_tick: called about every 0.2 s.
        ends: called with each outcome; if it returns true, the other tasks are stopped.
    """

    on_event: Callable[[TaskEvent], object] = lambda event: None
    on_tick: Callable[[], object] = lambda: None
    ends: Callable[[TaskOutcome], bool] = lambda outcome: False


@dataclass(frozen=True)
class TaskResults:
    """Results of tasks.

    Attributes:
        outcomes: the outcome of each, in the order of the tasks. A task that fails raises nothing.
        signum: the first signal that was received in the meantime; None if there was none.
    """

    outcomes: list[TaskOutcome]
    signum: int | None = None


def run_tasks(
    executor: Executor,
    tasks: Sequence[Task],
    policy: Policy = Policy(),  # noqa: B008 - it is frozen
    callbacks: Callbacks = Callbacks(),
) -> TaskResults:
    """Run tasks, the longest first, as `trainyard.sweep.loop.Loop` runs units.

    Args:
        executor: closed at the end if it was not started, or after an error.
        tasks: the tasks, with distinct numbers.
        policy: the policy for failures.
        callbacks: functions that are called in the meantime.

    Raises:
        ConfigError: tasks share a number or need too many slots, or a preloaded module cannot be imported.
        ExecutorError: the agent cannot be started.
        KeyboardInterrupt: a second signal was received.
    """
    if len({task.num for task in tasks}) < len(tasks):
        raise ConfigError("tasks", [task.num for task in tasks], "tasks with distinct numbers")
    widest, limit = max((task.slots for task in tasks), default=1), executor.room
    if widest > limit:
        raise ConfigError("tasks", widest, f"tasks of at most {counted(limit, 'slot')}")
    keep = executor.started
    executor.start()
    loop = _TaskLoop(executor, tasks, policy, callbacks)
    try:
        loop.run()
    except BaseException:
        keep = False  # tasks still run, and are killed
        raise
    finally:
        if not keep:
            executor.close()
    return TaskResults([loop.outcomes[task.num] for task in tasks], loop.signum)


class _TaskLoop(Loop):
    """Loop whose units are tasks."""

    def __init__(self, executor: Executor, tasks: Sequence[Task], policy: Policy, callbacks: Callbacks) -> None:
        super().__init__(executor, Scheduler(), policy)
        self.outcomes: dict[int, TaskOutcome] = {}
        self._tasks = {task.num: task for task in tasks}
        self._callbacks = callbacks
        self.apply(*(Proposed(num) for num in self._tasks))
        units = [Unit((task.num,), task.slots, task.attempts, task.expected_seconds) for task in tasks]
        self.apply(Queued(tuple(units)))

    def _task(self, unit: Unit) -> Task:
        return self._tasks[unit.nums[0]]

    def _conclude(self, running: RunningUnit, outcome: TaskOutcome, pid: int | None) -> None:
        task = self._tasks[outcome.num]
        kind = self._note(outcome, pid)
        name = task.name or f"task {task.num}"
        if kind == "failed" and self._policy.fail_fast:  # before its slot is free
            self.stop(f"stopped because {name} failed", self._policy.grace)
        elif self._callbacks.ends(outcome):
            self.stop(f"stopped after {name}", self._policy.grace)
        self.apply(Ended(task.num, outcome.state, outcome.seconds))

    def _dropped(self, unit: Unit) -> None:
        error = self._scheduler.stopping
        self._note(TaskOutcome(unit.nums[0], "interrupted", error=error, attempts=unit.attempts), None)

    def _note(self, outcome: TaskOutcome, pid: int | None) -> EventKind:
        kind: EventKind = {"done": "ended", "interrupted": "interrupted"}.get(outcome.state, "failed")  # type: ignore[assignment]
        self.outcomes[outcome.num] = outcome
        own = outcome.num, outcome.slot, outcome.attempts
        self._callbacks.on_event(TaskEvent(kind, *own, time.time(), pid, outcome.error, outcome.traceback, outcome))
        return kind

    def _tell(self, event: TaskEvent, unit: Unit) -> None:
        self._callbacks.on_event(event)

    def _on_tick(self) -> None:
        self._callbacks.on_tick()
