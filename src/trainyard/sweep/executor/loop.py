"""One run of the local executor: the loop that hands tasks to workers and hears what became of them."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from trainyard.errors import ConfigError
from trainyard.sweep.executor.forkserver import ForkServer, ServerEndedError, in_words
from trainyard.sweep.executor.queue import Backlog, Job, new
from trainyard.sweep.executor.slots import environment
from trainyard.sweep.executor.worker import INTERRUPTED, Report, Setting, one_line, read_report, write_task
from trainyard.sweep.jobs import Event, EventKind, Outcome, Slot, State, Task

TICK = 0.2  # seconds


@dataclass(frozen=True)
class Policy:
    """What is done about tasks that go wrong: see `LocalExecutor`."""

    retries: int
    timeout: float | None
    fail_fast: bool
    grace: float


@dataclass
class _Worker:
    """A process at work on a job.

    Attributes:
        slots: those that it takes.
        report: the file into which it writes how the task ended.
        begun: when; by `time.monotonic`.
        pid: None until the server has forked it.
        ending: why it was asked to end.
        kill_at: when it is killed if it has not ended; by `time.monotonic`.
    """

    job: Job
    slots: tuple[Slot, ...]
    report: BinaryIO
    begun: float
    pid: int | None = None
    ending: Literal["interrupted", "timeout"] | None = None
    kill_at: float | None = None


class Run:
    """Runs tasks, once.

    Args:
        server: forks the workers. It is started again if somebody kills it.
        slots, tasks, policy, on_event, on_tick: see `LocalExecutor`.
        signals: a list to which signals are appended while this runs.
    """

    def __init__(
        self,
        server: ForkServer,
        slots: Sequence[Slot],
        tasks: Sequence[Task],
        policy: Policy,
        signals: list[int],
        on_event: Callable[[Event], object] | None,
        on_tick: Callable[[], object] | None,
    ) -> None:
        self._server = server
        self._policy = policy
        self._signals = signals
        self._on_event = on_event
        self._on_tick = on_tick
        self._backlog = Backlog(slots, tasks)
        self._workers: dict[int, _Worker] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._stopping = False
        self._why = ""
        self._next_tick = 0.0

    def outcomes(self) -> dict[int, Outcome]:
        """Runs all tasks. Gives their outcomes by number."""
        while self._backlog or self._workers:
            self._tick()
            self._obey_signals()
            self._end_late_workers()
            try:
                self._start_one()
                self._hear()
            except ServerEndedError:
                self._restart_server()
        return self._outcomes

    def add(self, task: Task) -> None:
        """One more task, from a callback; it waits behind the others. Where the run is being ended it is not begun."""
        if self._stopping:
            self._conclude(new(task), "interrupted", error=self._why)
        else:
            self._backlog.put_back(new(task))

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
            self._server.send_signal(stubborn, signal.SIGKILL)

    def _start_one(self) -> None:
        """Asks for a worker, where there is a task for it; one at a time."""
        if not self._server.ready or any(worker.pid is None for worker in self._workers.values()):
            return
        running = {slot.index: worker.job for worker in self._workers.values() for slot in worker.slots}
        taken = self._backlog.take(running)
        if taken is None:
            return
        job, slots = taken
        with _memory_file() as file:
            try:
                write_task(file, _setting(job.task, slots), job.task.function, job.task.argument)
            except Exception as error:
                error_line = f"the task cannot be pickled: {one_line(error)}"
                self._conclude(job, "failed", error=error_line, trace=traceback.format_exc())
                return
            report = _memory_file()
            try:
                number = self._server.fork(file, report)
            except ServerEndedError:
                self._backlog.put_back(job)
                raise
        job.attempts += 1
        job.slot = slots[0].index
        self._workers[number] = _Worker(job, slots, report, begun=time.monotonic())

    def _hear(self) -> None:
        """Waits for the server's next message, no longer than until something is due here, and acts on it."""
        due = [self._next_tick]
        for worker in self._workers.values():
            if worker.kill_at is not None:
                due.append(worker.kill_at)
            if self._policy.timeout is not None and not worker.ending:
                due.append(worker.begun + self._policy.timeout)
        match self._server.receive(max(0.0, min(due) - time.monotonic())):
            case ["forked", number, pid]:
                worker = self._workers[number]
                worker.pid = pid
                self._tell("started", worker.job, pid)
            case ["refused", number, error]:
                self._ended(self._workers.pop(number), f"no process could be started: {error}")
            case ["ended", number, status]:
                how = f"its process {in_words(status)} before it gave a result"
                self._ended(self._workers.pop(number), how, status)
            case ["failed", module, error]:
                raise ConfigError("preload", module, "modules that can be imported before CUDA is used", hint=error)

    def _restart_server(self) -> None:
        """Somebody killed the server, and so all workers: each job has lost an attempt."""
        how = self._server.restart()
        workers, self._workers = self._workers, {}
        for worker in workers.values():
            self._ended(worker, f"the process that workers are forked from {how}")

    def _stop(self, why: str, grace: float | None) -> None:
        """Starts no more, and asks those at work to end."""
        self._stopping, self._why = True, why
        for job in self._backlog.clear():
            self._conclude(job, "interrupted", error=why)
        self._ask_to_end([n for n, worker in self._workers.items() if not worker.ending], "interrupted", grace)

    def _ask_to_end(self, numbers: list[int], why: Literal["interrupted", "timeout"], grace: float | None) -> None:
        """Sends SIGTERM. Without a grace there is as much time to end as there would have been anyway."""
        if not numbers:
            return
        for number in numbers:
            worker = self._workers[number]
            worker.ending = why
            if grace is not None:
                worker.kill_at = time.monotonic() + grace
            elif self._policy.timeout is not None:
                worker.kill_at = worker.begun + self._policy.timeout + self._policy.grace
        self._server.send_signal(numbers, signal.SIGTERM)

    def _ended(self, worker: _Worker, how: str, status: int | None = None) -> None:
        """A worker's process is gone: is its job done, or is there to be another attempt?"""
        job = worker.job
        job.seconds = time.monotonic() - worker.begun
        with worker.report as file:
            report = read_report(file)
        value: Any = None
        error: str | None
        if report is not None and report.kind == "done":
            report, value = _open(report)
        if report is None:
            state: State = "interrupted" if status in INTERRUPTED else "lost"
            error, trace = how, None
        else:
            state, error, trace = report.kind, report.error, report.traceback
        if worker.ending and state != "done":
            state = worker.ending
            if state == "timeout":
                error = f"took longer than {self._policy.timeout:g} s"

        may_go_on = state in ("failed", "lost") and not self._stopping
        devices = tuple(slot.device for slot in worker.slots)
        if may_go_on and report and report.out_of_memory and "cpu" not in devices and not job.alone_on:
            self._tell("retried", job, worker.pid, error, trace)
            job.alone_on = devices
            job.attempts -= 1
            self._backlog.put_back(job)
        elif may_go_on and job.attempts <= self._policy.retries:
            self._tell("retried", job, worker.pid, error, trace)
            self._backlog.put_back(job)
        else:
            self._conclude(job, state, value, error, trace, worker.pid)

    def _conclude(
        self,
        job: Job,
        state: State,
        value: Any = None,
        error: str | None = None,
        trace: str | None = None,
        pid: int | None = None,
    ) -> None:
        num = job.task.num
        outcome = Outcome(num, state, value, error, trace, job.seconds, job.attempts, job.slot)
        self._outcomes[num] = outcome
        kind: EventKind = "ended" if state == "done" else "interrupted" if state == "interrupted" else "failed"
        self._tell(kind, job, pid, error, trace, outcome)
        if kind == "failed" and self._policy.fail_fast and not self._stopping:
            self._stop(f"stopped, for {job.task.name or f'task {num}'} failed", self._policy.grace)

    def _tell(
        self,
        kind: EventKind,
        job: Job,
        pid: int | None,
        error: str | None = None,
        trace: str | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        if self._on_event is not None:
            self._on_event(Event(kind, job.task.num, job.slot, job.attempts, time.time(), pid, error, trace, outcome))


def _setting(task: Task, slots: Sequence[Slot]) -> Setting:
    environ = environment(slots, os.environ)
    path = [str(entry) for entry in sys.path]
    cpus = None if slots[0].cpus is None else tuple(cpu for slot in slots for cpu in slot.cpus or ())
    return Setting(environ, str(Path.cwd()), path, list(sys.argv), cpus, slots[0].threads, task.log)


def _memory_file() -> BinaryIO:
    """A file in memory. Unlike a pipe it makes nobody wait: not for a worker that hangs, nor for this process."""
    return os.fdopen(os.memfd_create("trainyard"), "w+b")


def _open(report: Report) -> tuple[Report, Any]:
    """The report of a task that is done, and what the task returned."""
    try:
        return report, pickle.loads(report.value)
    except Exception as error:
        error_line = f"what the task returned cannot be unpickled: {one_line(error)}"
        return Report("failed", error=error_line, traceback=traceback.format_exc()), None
