"""Loop of the local executor: it gives tasks to workers and collects their outcomes."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from trainyard.errors import ConfigError
from trainyard.sweep.executor.agent import Agent, AgentEndedError, in_words
from trainyard.sweep.executor.slots import Slot, environment
from trainyard.sweep.executor.task import EventKind, Task, TaskEvent, TaskOutcome, TaskState
from trainyard.sweep.executor.task_queue import QueuedTask, TaskQueue, new
from trainyard.sweep.executor.worker import (
    INTERRUPTED,
    TaskReport,
    WorkerSetting,
    one_line,
    read_report,
    write_task,
)

TICK = 0.2  # seconds


@dataclass(frozen=True)
class Policy:
    """Policy for tasks that fail: see `LocalExecutor`."""

    retries: int
    timeout: float | None
    fail_fast: bool
    grace: float


@dataclass
class _Worker:
    """Process that runs a task.

    Attributes:
        slots: the slots that it takes.
        report: the file that its report is written to.
        begun: its start, by `time.monotonic`.
        pid: its process id; None until the agent has forked it.
        ending: why it was asked to end.
        kill_at: the time at which it is killed if it still runs, by `time.monotonic`.
    """

    queued: QueuedTask
    slots: tuple[Slot, ...]
    report: BinaryIO
    begun: float
    pid: int | None = None
    ending: Literal["interrupted", "timeout"] | None = None
    kill_at: float | None = None


class TaskLoop:
    """Runs tasks, once.

    Args:
        agent: forks the workers. It is restarted if it is killed.
        slots, tasks, policy, on_event, on_tick: see `LocalExecutor`.
        signals: a list to which signals are appended while this runs.
    """

    def __init__(
        self,
        agent: Agent,
        slots: Sequence[Slot],
        tasks: Sequence[Task],
        policy: Policy,
        signals: list[int],
        on_event: Callable[[TaskEvent], object] | None,
        on_tick: Callable[[], object] | None,
    ) -> None:
        self._agent = agent
        self._policy = policy
        self._signals = signals
        self._on_event = on_event
        self._on_tick = on_tick
        self._queue = TaskQueue(slots, tasks)
        self._workers: dict[int, _Worker] = {}
        self._outcomes: dict[int, TaskOutcome] = {}
        self._stopping = False
        self._why = ""
        self._next_tick = 0.0

    def outcomes(self) -> dict[int, TaskOutcome]:
        """Run all tasks, and return their outcomes by number."""
        while self._queue or self._workers:
            self._tick()
            self._obey_signals()
            self._end_late_workers()
            try:
                self._start_one()
                self._hear()
            except AgentEndedError:
                self._restart_agent()
        return self._outcomes

    def add(self, task: Task) -> None:
        """Add a task, from a callback, behind the others. It does not start if the run is being ended."""
        if self._stopping:
            self._conclude(new(task), "interrupted", error=self._why)
        else:
            self._queue.put_back(new(task))

    def stop(self, why: str) -> None:
        """End the run, from a callback, as a failed task does with `fail_fast`."""
        if not self._stopping:
            self._stop(why, self._policy.grace)

    def _tick(self) -> None:
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + TICK
            if self._on_tick is not None:
                self._on_tick()

    def _obey_signals(self) -> None:
        if len(self._signals) > 1:
            raise KeyboardInterrupt
        if self._signals and not self._stopping:
            self._stop(f"interrupted by {signal.Signals(self._signals[0]).name}", grace=None)

    def _end_late_workers(self) -> None:
        now = time.monotonic()
        timeout = self._policy.timeout
        if timeout is not None:
            late = [n for n, worker in self._workers.items() if not worker.ending and now >= worker.begun + timeout]
            self._ask_to_end(late, "timeout", self._policy.grace)
        stubborn = [n for n, worker in self._workers.items() if worker.kill_at is not None and now >= worker.kill_at]
        if stubborn:
            for number in stubborn:
                self._workers[number].kill_at = None
            self._agent.send_signal(stubborn, signal.SIGKILL)

    def _start_one(self) -> None:
        """Ask the agent for one worker, if there is a task for it."""
        if not self._agent.ready or any(worker.pid is None for worker in self._workers.values()):
            return
        running = {slot.index: worker.queued for worker in self._workers.values() for slot in worker.slots}
        taken = self._queue.take(running)
        if taken is None:
            return
        queued, slots = taken
        with _memory_file() as file:
            try:
                write_task(file, _setting(queued.task, slots), queued.task.function, queued.task.argument)
            except Exception as error:
                error_line = f"the task cannot be pickled: {one_line(error)}"
                self._conclude(queued, "failed", error=error_line, trace=traceback.format_exc())
                return
            report = _memory_file()
            try:
                number = self._agent.fork(file, report)
            except AgentEndedError:
                self._queue.put_back(queued)
                raise
        queued.attempts += 1
        queued.slot = slots[0].index
        self._workers[number] = _Worker(queued, slots, report, begun=time.monotonic())

    def _hear(self) -> None:
        """Wait for the agent's next message, at most until the next deadline, and handle it."""
        due = [self._next_tick]
        for worker in self._workers.values():
            if worker.kill_at is not None:
                due.append(worker.kill_at)
            if self._policy.timeout is not None and not worker.ending:
                due.append(worker.begun + self._policy.timeout)
        match self._agent.receive(max(0.0, min(due) - time.monotonic())):
            case ["forked", number, pid]:
                worker = self._workers[number]
                worker.pid = pid
                self._tell("started", worker.queued, pid)
            case ["refused", number, error]:
                self._ended(self._workers.pop(number), f"no process could be started: {error}")
            case ["ended", number, status]:
                how = f"its process {in_words(status)} before it gave a result"
                self._ended(self._workers.pop(number), how, status)
            case ["failed", module, error]:
                raise ConfigError("preload", module, "modules that can be imported before CUDA is used", hint=error)

    def _restart_agent(self) -> None:
        """Restart the agent after it was killed, and with it all workers: each task has lost an attempt."""
        how = self._agent.restart()
        workers, self._workers = self._workers, {}
        for worker in workers.values():
            self._ended(worker, f"the process that workers are forked from {how}")

    def _stop(self, why: str, grace: float | None) -> None:
        """Start no more tasks, and ask the running ones to end."""
        self._stopping, self._why = True, why
        for queued in self._queue.clear():
            self._conclude(queued, "interrupted", error=why)
        self._ask_to_end([n for n, worker in self._workers.items() if not worker.ending], "interrupted", grace)

    def _ask_to_end(self, numbers: list[int], why: Literal["interrupted", "timeout"], grace: float | None) -> None:
        """Send SIGTERM. Without a grace, the deadline that applies anyway stays."""
        if not numbers:
            return
        for number in numbers:
            worker = self._workers[number]
            worker.ending = why
            if grace is not None:
                worker.kill_at = time.monotonic() + grace
            elif self._policy.timeout is not None:
                worker.kill_at = worker.begun + self._policy.timeout + self._policy.grace
        self._agent.send_signal(numbers, signal.SIGTERM)

    def _ended(self, worker: _Worker, how: str, status: int | None = None) -> None:
        """Handle the end of a worker's process: the task is done, fails, or gets another attempt."""
        queued = worker.queued
        queued.seconds = time.monotonic() - worker.begun
        with worker.report as file:
            report = read_report(file)
        value: Any = None
        error: str | None
        if report is not None and report.kind == "done":
            report, value = _open(report)
        if report is None:
            state: TaskState = "interrupted" if status in INTERRUPTED else "lost"
            error, trace = how, None
        else:
            state, error, trace = report.kind, report.error, report.traceback
        if worker.ending and state != "done":
            state = worker.ending
            if state == "timeout":
                error = f"took longer than {self._policy.timeout:g} s"

        may_go_on = state in ("failed", "lost") and not self._stopping
        devices = tuple(slot.device for slot in worker.slots)
        if may_go_on and report and report.out_of_memory and "cpu" not in devices and not queued.alone_on:
            self._tell("retried", queued, worker.pid, error, trace)
            queued.alone_on = devices
            queued.attempts -= 1
            self._queue.put_back(queued)
        elif may_go_on and queued.attempts <= self._policy.retries:
            self._tell("retried", queued, worker.pid, error, trace)
            self._queue.put_back(queued)
        else:
            self._conclude(queued, state, value, error, trace, worker.pid)

    def _conclude(
        self,
        queued: QueuedTask,
        state: TaskState,
        value: Any = None,
        error: str | None = None,
        trace: str | None = None,
        pid: int | None = None,
    ) -> None:
        num = queued.task.num
        outcome = TaskOutcome(num, state, value, error, trace, queued.seconds, queued.attempts, queued.slot)
        self._outcomes[num] = outcome
        kind: EventKind = "ended" if state == "done" else "interrupted" if state == "interrupted" else "failed"
        self._tell(kind, queued, pid, error, trace, outcome)
        if kind == "failed" and self._policy.fail_fast and not self._stopping:
            self._stop(f"stopped, for {queued.task.name or f'task {num}'} failed", self._policy.grace)

    def _tell(
        self,
        kind: EventKind,
        queued: QueuedTask,
        pid: int | None,
        error: str | None = None,
        trace: str | None = None,
        outcome: TaskOutcome | None = None,
    ) -> None:
        if self._on_event is not None:
            num, now = queued.task.num, time.time()
            self._on_event(TaskEvent(kind, num, queued.slot, queued.attempts, now, pid, error, trace, outcome))


def _setting(task: Task, slots: Sequence[Slot]) -> WorkerSetting:
    if task.threads is not None:
        slots = [replace(slot, threads=task.threads) for slot in slots]
    environ = environment(slots, os.environ)
    path = [str(entry) for entry in sys.path]
    cpus = None if slots[0].cpus is None else tuple(cpu for slot in slots for cpu in slot.cpus or ())
    return WorkerSetting(environ, str(Path.cwd()), path, list(sys.argv), cpus, slots[0].threads, task.log)


def _memory_file() -> BinaryIO:
    """Return a file in memory. Unlike a pipe, it never blocks a writer or a reader."""
    return os.fdopen(os.memfd_create("trainyard"), "w+b")


def _open(report: TaskReport) -> tuple[TaskReport, Any]:
    """Return the report of a task that is done, and the value that the task returned."""
    try:
        return report, pickle.loads(report.value)
    except Exception as error:
        error_line = f"what the task returned cannot be unpickled: {one_line(error)}"
        return TaskReport("failed", error=error_line, traceback=traceback.format_exc()), None
