"""Executor for this machine: a process for each task, forked from an agent that has torch imported."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from trainyard.errors import ConfigError
from trainyard.sweep.executor.agent import Agent, AgentEndedError, in_words, not_preloaded
from trainyard.sweep.executor.base import Executor, ExecutorEvent, Finished, Gained
from trainyard.sweep.executor.early import take
from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.executor.slots import Slot, environment
from trainyard.sweep.executor.task import Task
from trainyard.sweep.executor.worker import Place, one_line, worker_setting, write_task
from trainyard.sweep.executor.workers import Workers


class LocalExecutor(Executor):
    """Runs tasks on the slots of this machine, each in a separate process. Linux only.

    When the process of a task ends, the other processes of its process group are killed. When this process is killed,
    its tasks are killed too. When the agent is killed, it is started again, and its tasks are lost.

    Args:
        slots: the slots; one task at a time runs on each slot.
        preload: modules that are imported before workers are forked. They must not touch CUDA or start threads on
            import.

    Raises:
        ConfigError: a value is out of range; from `wait`, a preloaded module cannot be imported.
        ExecutorError: from `wait`, the agent cannot be started.
    """

    def __init__(self, slots: Sequence[Slot], *, preload: Sequence[str] = ("torch",)) -> None:
        if not slots or len({slot.index for slot in slots}) < len(slots):
            raise ConfigError("slots", [slot.index for slot in slots], "one or more slots with distinct indices")
        for slot in slots:
            environment([slot], os.environ)
        self.slots = tuple(slots)
        self.preload = tuple(preload)
        self._agent: Agent | None = None
        self._by_index = {slot.index: slot for slot in slots}
        self._pending: list[tuple[int, Task, Sequence[int], Policy]] = []  # until the agent is ready
        self._workers = Workers(self._send_signal)  # by the agent's number
        self._reports: dict[int, BinaryIO] = {}  # the file that each writes its report to
        self._events: list[ExecutorEvent] = []

    def start(self) -> None:
        if self._agent is None:
            self._agent = take(self.preload, max(slot.threads for slot in self.slots))

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
        try:
            call = task.call()
            common = b"" if task.common is None else task.common.pickled()
        except Exception as error:
            told = f"the task cannot be pickled: {one_line(error)}"
            self._events.append(Finished(number, "failed", error=told, traceback=traceback.format_exc(), began=False))
            return True
        with memory_file() as file:
            place = Place(str(Path.cwd()), sys.path, sys.argv)
            write_task(file, worker_setting(slots, task.threads, task.log, place), call, common)
            report = memory_file()
            try:
                worker = self._agent.fork(file, report)
            except AgentEndedError:
                report.close()
                return False
        self._workers.begin(worker, number, policy)
        self._reports[worker] = report
        return True

    def end(self, numbers: Iterable[int], grace: float | None) -> None:
        wanted = set(numbers)
        self._workers.end(wanted, grace)
        for each in [each for each in self._pending if each[0] in wanted]:
            self._pending.remove(each)
            self._events.append(Finished(each[0], "interrupted", error="the job had not started", began=False))

    def answer(self, number: int, content: bytes) -> None:
        worker = self._workers.named(number)
        if self._agent is not None and isinstance(worker, int):
            with memory_file() as file:
                file.write(content)
                file.flush()
                self._agent.answer(worker, file)

    def wait(self, timeout: float) -> list[ExecutorEvent]:
        assert self._agent is not None
        try:
            self._workers.end_late()
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
            for report in self._reports.values():
                report.close()
            self._reports.clear()
            self._pending.clear()
            self._workers.clear()
            self._events.clear()

    def _send_signal(self, workers: list[int], signum: int) -> None:
        assert self._agent is not None
        self._agent.send_signal(workers, signum)

    def _hear(self, timeout: float) -> None:
        """Wait for the agent's next message, at most until the next deadline, and handle all that there are then."""
        assert self._agent is not None
        now = time.monotonic()
        wait = max(0.0, self._workers.next_due(now + timeout) - now)
        while (message := self._agent.receive(wait)) is not None:
            self._heard(message)
            wait = 0.0

    def _heard(self, message: list[Any]) -> None:
        match message:
            case ["ready"]:
                self._events.append(Gained(self.slots))
            case ["forked", worker, pid]:
                self._events.append(self._workers.forked(worker, pid))
            case ["woken", worker, index, at]:
                if (event := self._workers.woken(worker, index, at)) is not None:
                    self._events.append(event)
            case ["said", worker, text]:
                if (said := self._workers.said(worker, text)) is not None:
                    self._events.append(said)
            case ["refused", worker, error]:
                self._ended(worker, f"no process could be started: {error}")
            case ["ended", worker, status, peak, killed]:
                self._ended(worker, f"its process {in_words(status)} before it returned a result", status, peak, killed)
            case ["failed", module, error]:
                raise not_preloaded(module, error)

    def _restart_agent(self) -> None:
        """Restart the agent after it and all workers were killed; each task has lost an attempt."""
        assert self._agent is not None
        how = self._agent.restart()
        for worker in list(self._reports):
            self._ended(worker, f"the fork server {how}")

    def _ended(self, worker: int, how: str, status: int | None = None, peak: int = 0, killed: bool = False) -> None:
        with self._reports.pop(worker) as file:
            file.seek(0)
            content = file.read()
        self._events.append(self._workers.ended(worker, how, content, status, peak, killed))


def memory_file() -> BinaryIO:
    """Return a file in memory. Unlike a pipe, it never blocks a writer or a reader."""
    return os.fdopen(os.memfd_create("trainyard"), "w+b")
