"""Executor for this machine: a process for each task, forked from an agent that has torch imported."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from trainyard.errors import ConfigError
from trainyard.sweep.executor.agent import Agent, AgentEndedError, in_words
from trainyard.sweep.executor.base import Executor, ExecutorEvent, Finished, Gained, Launched, Woken
from trainyard.sweep.executor.out_of_memory import killed_for_memory
from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.executor.slots import Slot, environment
from trainyard.sweep.executor.task import Task, TaskState
from trainyard.sweep.executor.worker import (
    INTERRUPTED,
    TaskReport,
    WorkerSetting,
    one_line,
    read_report,
    write_task,
)


@dataclass
class _Worker:
    """Process that runs a task.

    Attributes:
        number: the task's number.
        policy: its `timeout` and `grace`.
        report: the file that its report is written to.
        begun: its start, by `time.monotonic`.
        pid: its process id; None until the agent has forked it.
        ending: why it was asked to end.
        kill_at: the time at which it is killed if it still runs, by `time.monotonic`.
    """

    number: int
    policy: Policy
    report: BinaryIO
    begun: float
    pid: int | None = None
    ending: Literal["interrupted", "timeout"] | None = None
    kill_at: float | None = None

    @property
    def timeout_at(self) -> float | None:
        return None if self.policy.timeout is None else self.begun + self.policy.timeout


class LocalExecutor(Executor):
    """Runs tasks on the slots of this machine, each in a process of its own that ends with it. Linux only.

    When a task's process ends, the rest of its process group is killed. When this process is killed, its tasks are
    killed too. When the agent is killed, it is started again; its tasks are lost.

    Args:
        slots: the slots that tasks run on, one at a time on each.
        preload: modules to import before workers are forked. They must not touch CUDA or start threads on import.

    Raises:
        ConfigError: a value is out of range; from `wait`, a preloaded module cannot be imported.
        ExecutorError: from `wait`, the agent cannot be started.
    """

    def __init__(self, slots: Sequence[Slot], *, preload: Sequence[str] = ("torch",)) -> None:
        if not slots or len({slot.index for slot in slots}) < len(slots):
            raise ConfigError("slots", [slot.index for slot in slots], "one or more, each with an index of its own")
        for slot in slots:
            environment([slot], os.environ)
        self.slots = tuple(slots)
        self.preload = tuple(preload)
        self._agent: Agent | None = None
        self._by_index = {slot.index: slot for slot in slots}
        self._pending: list[tuple[int, Task, Sequence[int], Policy]] = []  # until the agent is ready
        self._workers: dict[int, _Worker] = {}  # by the agent's number
        self._events: list[ExecutorEvent] = []

    def start(self) -> None:
        if self._agent is None:
            self._agent = Agent(self.preload, max(slot.threads for slot in self.slots))

    @property
    def started(self) -> bool:
        """Whether there is an agent, ready or not."""
        return self._agent is not None

    @property
    def ready(self) -> tuple[Slot, ...]:
        return self.slots if self._agent is not None and self._agent.ready else ()

    def launch(self, number: int, task: Task, slots: Sequence[int], policy: Policy) -> None:
        self._pending.append((number, task, slots, policy))
        self._fork_pending()

    def _fork_pending(self) -> None:
        assert self._agent is not None
        while self._pending and self._agent.ready:
            number, task, slots, policy = self._pending[0]
            if not self._fork(number, task, [self._by_index[index] for index in slots], policy):
                return
            del self._pending[0]

    def _fork(self, number: int, task: Task, slots: Sequence[Slot], policy: Policy) -> bool:
        """Ask the agent for a worker; return False if the agent has ended, which `wait` will find."""
        assert self._agent is not None
        setting = _setting(task, slots)
        with _memory_file() as file:
            try:
                write_task(file, setting, task.function, task.argument)
            except Exception as error:
                told = f"the task cannot be pickled: {one_line(error)}"
                self._events.append(
                    Finished(number, "failed", error=told, traceback=traceback.format_exc(), began=False)
                )
                return True
            report = _memory_file()
            try:
                worker = self._agent.fork(file, report)
            except AgentEndedError:
                report.close()
                return False
        self._workers[worker] = _Worker(number, policy, report, begun=time.monotonic())
        return True

    def end(self, numbers: Iterable[int], grace: float | None) -> None:
        wanted = set(numbers)
        found = [each for each, worker in self._workers.items() if worker.number in wanted and not worker.ending]
        self._ask_to_end(found, "interrupted", grace)
        for each in [each for each in self._pending if each[0] in wanted]:
            self._pending.remove(each)
            self._events.append(Finished(each[0], "interrupted", error="it had not begun", began=False))

    def wait(self, timeout: float) -> list[ExecutorEvent]:
        assert self._agent is not None
        try:
            self._end_late_workers()
            self._fork_pending()
            self._hear(0.0 if self._events else timeout)
        except AgentEndedError:
            self._restart_agent()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()
            self._agent = None
            for worker in self._workers.values():
                worker.report.close()
            self._pending.clear()
            self._workers.clear()
            self._events.clear()

    def _end_late_workers(self) -> None:
        now = time.monotonic()
        for number, worker in self._workers.items():
            if worker.timeout_at is not None and not worker.ending and now >= worker.timeout_at:
                self._ask_to_end([number], "timeout", worker.policy.grace)
        stubborn = [n for n, worker in self._workers.items() if worker.kill_at is not None and now >= worker.kill_at]
        if stubborn:
            for number in stubborn:
                self._workers[number].kill_at = None
            assert self._agent is not None
            self._agent.send_signal(stubborn, signal.SIGKILL)

    def _ask_to_end(self, numbers: list[int], why: Literal["interrupted", "timeout"], grace: float | None) -> None:
        """Send SIGTERM. Without a grace, the deadline that applies anyway stays."""
        if not numbers:
            return
        for number in numbers:
            worker = self._workers[number]
            worker.ending = why
            if grace is not None:
                worker.kill_at = time.monotonic() + grace
            elif worker.timeout_at is not None:
                worker.kill_at = worker.timeout_at + worker.policy.grace
        assert self._agent is not None
        self._agent.send_signal(numbers, signal.SIGTERM)

    def _hear(self, timeout: float) -> None:
        """Wait for the agent's next message, at most until the next deadline, and handle all that there are then."""
        assert self._agent is not None
        now = time.monotonic()
        due = [now + timeout]
        for worker in self._workers.values():
            if worker.kill_at is not None:
                due.append(worker.kill_at)
            if worker.timeout_at is not None and not worker.ending:
                due.append(worker.timeout_at)
        wait = max(0.0, min(due) - now)
        while (message := self._agent.receive(wait)) is not None:
            self._heard(message)
            wait = 0.0

    def _heard(self, message: list[Any]) -> None:
        match message:
            case ["ready"]:
                self._events.append(Gained(self.slots))
            case ["forked", number, pid]:
                worker = self._workers[number]
                worker.pid = pid
                self._events.append(Launched(worker.number, pid))
            case ["woken", number, index, at]:
                if number in self._workers:
                    self._events.append(Woken(self._workers[number].number, index, at))
            case ["refused", number, error]:
                self._ended(self._workers.pop(number), f"no process could be started: {error}")
            case ["ended", number, status, *memory]:
                how = f"its process {in_words(status)} before it gave a result"
                self._ended(self._workers.pop(number), how, status, *memory)
            case ["failed", module, error]:
                raise ConfigError("preload", module, "modules that can be imported before CUDA is used", hint=error)

    def _restart_agent(self) -> None:
        """Restart the agent after it was killed, and with it all workers: each task has lost an attempt."""
        assert self._agent is not None
        how = self._agent.restart()
        workers, self._workers = self._workers, {}
        for worker in workers.values():
            self._ended(worker, f"the process that workers are forked from {how}")

    def _ended(self, worker: _Worker, how: str, status: int | None = None, peak: int = 0, killed: bool = False) -> None:
        """Tell how a worker's process ended.

        Args:
            worker: the worker.
            how: what to say if it left no report.
            status: its exit status.
            peak: the memory that it had at most, in bytes.
            killed: whether the system has killed a process for want of memory meanwhile.
        """
        seconds = time.monotonic() - worker.begun
        with worker.report as file:
            report = read_report(file)
        value: Any = None
        error: str | None
        memory: Literal["", "device", "host"] = ""
        if report is not None and report.kind == "done":
            report, value = _open(report)
        if report is None:
            state: TaskState = "interrupted" if status in INTERRUPTED else "lost"
            error, trace = how, None
            if killed and status == -signal.SIGKILL and worker.kill_at is None:
                memory, error = "host", killed_for_memory(peak)
        else:
            state, error, trace = report.kind, report.error, report.traceback
            memory = "device" if report.out_of_memory else ""
        if worker.ending and state != "done":
            state = worker.ending
            if state == "timeout":
                error = f"took longer than {worker.policy.timeout:g} s"
        self._events.append(
            Finished(worker.number, state, value, error, trace, seconds, out_of_memory=memory, peak=peak)
        )


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
