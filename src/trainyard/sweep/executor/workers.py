"""Workers of an executor: their deadlines, and the reports of agents about them."""

from __future__ import annotations

import io
import json
import math
import signal
import time
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from trainyard.sweep.executor.base import Finished, Launched, Said, Woken
from trainyard.sweep.executor.out_of_memory import killed_for_memory
from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.executor.shipping import portable
from trainyard.sweep.executor.task import TaskState
from trainyard.sweep.executor.worker import INTERRUPTED, TaskReport, one_line, parsed_report

SendSignal = Callable[[list[Any], int], object]


@dataclass
class Worker:
    """Process that runs a task.

    Attributes:
        number: the task's number.
        policy: its `timeout` and `grace`.
        begun: its start, by `time.monotonic`.
        ending: the reason why it was asked to end.
        kill_at: the time at which it is killed if it still runs, by `time.monotonic`.
    """

    number: int
    policy: Policy
    begun: float
    ending: Literal["interrupted", "timeout"] | None = None
    kill_at: float | None = None

    @property
    def timeout_at(self) -> float | None:
        return None if self.policy.timeout is None else self.begun + self.policy.timeout

    @property
    def due(self) -> float:
        """Next deadline, by `time.monotonic`; infinity if it has none."""
        timeout = math.inf if self.timeout_at is None or self.ending else self.timeout_at
        return timeout if self.kill_at is None else min(timeout, self.kill_at)


class Workers:
    """Running workers, by their name at their agent.

    Args:
        send_signal: sends a signal to workers.
    """

    def __init__(self, send_signal: SendSignal) -> None:
        self._send_signal = send_signal
        self._workers: dict[Hashable, Worker] = {}
        self._earliest = math.inf  # no deadline is before this: there may be a thousand workers

    def __contains__(self, name: Hashable) -> bool:
        return name in self._workers

    def __iter__(self) -> Iterator[Hashable]:
        return iter(list(self._workers))

    def begin(self, name: Hashable, number: int, policy: Policy) -> None:
        """Add a worker that was requested from an agent."""
        self._workers[name] = Worker(number, policy, time.monotonic())
        self._earliest = min(self._earliest, self._workers[name].due)

    def clear(self) -> None:
        """Forget all workers."""
        self._workers.clear()

    def forget(self, name: Hashable) -> None:
        """Forget a worker: its slot is lost."""
        self._workers.pop(name, None)

    def end(self, numbers: Iterable[int], grace: float | None) -> None:
        """Ask the workers of tasks to end, once each."""
        wanted = set(numbers)
        found = [name for name, it in self._workers.items() if it.number in wanted and not it.ending]
        self._ask_to_end(found, "interrupted", grace)

    def end_late(self) -> None:
        """Ask workers whose time is over to end, and kill those that do not."""
        now = time.monotonic()
        if now < self._earliest:
            return
        for name, worker in self._workers.items():
            if worker.timeout_at is not None and not worker.ending and now >= worker.timeout_at:
                self._ask_to_end([name], "timeout", worker.policy.grace)
        stubborn = [name for name, it in self._workers.items() if it.kill_at is not None and now >= it.kill_at]
        if stubborn:
            for name in stubborn:
                self._workers[name].kill_at = None
            self._send_signal(stubborn, signal.SIGKILL)
        self._earliest = min((worker.due for worker in self._workers.values()), default=math.inf)

    def next_due(self, latest: float) -> float:
        """Return a time before which there is no deadline, by `time.monotonic`; `latest` at most."""
        return min(latest, self._earliest)

    def forked(self, name: Hashable, pid: int) -> Launched:
        """Return the event of a worker that has started."""
        return Launched(self._workers[name].number, pid)

    def woken(self, name: Hashable, index: int, at: int) -> Woken | None:
        """Return the event of a report; None if the worker is gone."""
        return Woken(self._workers[name].number, index, at) if name in self._workers else None

    def said(self, name: Hashable, text: str) -> Said | None:
        """Return the event of a message from a worker; None if the worker is gone."""
        return Said(self._workers[name].number, json.loads(text)) if name in self._workers else None

    def named(self, number: int) -> Hashable | None:
        """Return the worker of a task; None if it is gone."""
        return next((name for name, it in self._workers.items() if it.number == number), None)

    def ended(
        self,
        name: Hashable,
        how: str,
        content: bytes = b"",
        status: int | None = None,
        peak: int = 0,
        killed: bool = False,
    ) -> Finished:
        """Return the event of a worker that has ended.

        Args:
            name: the worker.
            how: the message if it left no report.
            content: its unparsed report.
            status: its exit status.
            peak: its peak memory in bytes.
            killed: whether the system has killed a process because of memory in the meantime.
        """
        worker = self._workers.pop(name)
        seconds = time.monotonic() - worker.begun
        report = parsed_report(content)
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
        return Finished(worker.number, state, value, error, trace, seconds, out_of_memory=memory, peak=peak)

    def _ask_to_end(self, names: list[Hashable], why: Literal["interrupted", "timeout"], grace: float | None) -> None:
        """Send SIGTERM. Without a grace period, the existing deadline is kept."""
        if not names:
            return
        for name in names:
            worker = self._workers[name]
            worker.ending = why
            if grace is not None:
                worker.kill_at = time.monotonic() + grace
            elif worker.timeout_at is not None:
                worker.kill_at = worker.timeout_at + worker.policy.grace
            self._earliest = min(self._earliest, worker.due)
        self._send_signal(names, signal.SIGTERM)


def _open(report: TaskReport) -> tuple[TaskReport, Any]:
    """Return the report of a task that is done, and the value that the task returned."""
    try:
        return report, portable.load(io.BytesIO(report.value))
    except Exception as error:
        error_line = f"the return value of the task function cannot be unpickled: {one_line(error)}"
        return TaskReport("failed", error=error_line, traceback=traceback.format_exc()), None
