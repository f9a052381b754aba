"""Loop between an executor and a scheduler: logs events, passes them to the scheduler, executes its actions."""

from __future__ import annotations

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

from trainyard.sweep.events import (
    Action,
    Drop,
    Emptied,
    End,
    Event,
    Queued,
    Release,
    SlotsGained,
    SlotsLost,
    Start,
    Started,
    Stopping,
    Unit,
)
from trainyard.sweep.executor.base import Executor, ExecutorEvent, Finished, Gained, Launched, Lost, Said, Woken
from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.executor.task import EventKind, Task, TaskEvent, TaskOutcome
from trainyard.sweep.scheduler import RunningUnit, Scheduler
from trainyard.sweep.waiting import is_cpu, machine

TICK = 0.2  # seconds


class Loop(ABC):
    """Runs the units of a scheduler until none are left.

    A unit whose process fails is retried according to the policy. A unit that runs out of CUDA memory, or that the
    system kills because of memory, is retried once, uncounted, with exclusive use of its device (or machine).

    The first SIGINT or SIGTERM to this process, if this is its main thread, passes SIGTERM on to every unit, so that it
    can save a checkpoint, and starts no more. The second raises KeyboardInterrupt.

    Args:
        executor: the started executor.
        scheduler: the scheduler with the units to run.
        policy: the policy for failures.

    Attributes:
        signum: the first received signal; None if there was none.
    """

    def __init__(self, executor: Executor, scheduler: Scheduler, policy: Policy) -> None:
        self.signum: int | None = None
        self._executor = executor
        self._scheduler = scheduler
        self._policy = policy
        self._grace: float | None = None
        self._pids: dict[int, int | None] = {}
        self._next_tick = 0.0

    def run(self) -> None:
        """Run until nothing is left.

        Raises:
            KeyboardInterrupt: a second signal was received. Running tasks are ended by `close` of the executor.
        """
        with _signals_caught() as caught:
            try:
                self._take_slots()
                while self._goes_on():
                    self._tick()
                    self._obey(caught)
                    for event in self._executor.wait(max(0.0, self._next_tick - time.monotonic())):
                        self._heard(event)
            finally:
                self.signum = caught[0] if caught else None

    def stop(self, why: str, grace: float | None) -> None:
        """Start nothing more, and ask running units to end; they are killed after `grace` seconds, if given."""
        if not self._scheduler.stopping:
            self._grace = grace
            self.apply(Stopping(why))

    def apply(self, *events: Event) -> None:
        """Log events, pass them to the scheduler, and execute its actions."""
        for event in self._log(events):
            for action in self._told(event):
                self._act(action)

    # -- what differs --------------------------------------------------------------------------------------------------

    @abstractmethod
    def _task(self, unit: Unit) -> Task:
        """Return the task that runs a unit."""

    @abstractmethod
    def _conclude(self, running: RunningUnit, outcome: TaskOutcome, pid: int | None) -> None:
        """Apply the consequences of the last attempt at a unit, which all of its jobs leave.

        Args:
            running: the unit.
            outcome: the outcome of that attempt.
            pid: its process; None if there was none.
        """

    @abstractmethod
    def _dropped(self, unit: Unit) -> None:
        """Record a unit that will not start."""

    @abstractmethod
    def _tell(self, event: TaskEvent, unit: Unit) -> None:
        """Show an event to users."""

    def _log(self, events: Sequence[Event]) -> Sequence[Event]:
        return events

    def _told(self, event: Event) -> list[Action]:
        return self._scheduler.handle(event)

    def _goes_on(self) -> bool:
        return self._scheduler.busy

    def _on_tick(self) -> None:  # noqa: B027 (not every loop has to)
        """Perform the regular work every 0.2 s."""

    def _woken(self, running: RunningUnit, index: int, at: int) -> None:  # noqa: B027 (not every loop has to)
        """Handle the report of a job."""

    def _said(self, running: RunningUnit, number: int, message: Any) -> None:  # noqa: B027 (not every loop has to)
        """Handle a message of a unit on its line."""

    def _release(self, number: int) -> None:
        """Let jobs with pending requests leave a unit; here, by ending the unit."""
        self._executor.end([number], self._grace)

    def _out_of_host_memory(self, event: Finished) -> None:  # noqa: B027 (not every loop has to)
        """Record a unit that the system has killed because of memory."""

    # -- events --------------------------------------------------------------------------------------------------------

    def _take_slots(self) -> None:
        ready = {slot.index: slot for slot in self._executor.ready}
        known = set(self._scheduler.slots)
        if lost := known - ready.keys():
            self.apply(SlotsLost(tuple(sorted(lost))))
        if gained := [slot for index, slot in ready.items() if index not in known]:
            self.apply(SlotsGained(tuple((slot.index, slot.device) for slot in gained)))

    def _tick(self) -> None:
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + TICK
            self._executor.expect(self._scheduler.demand)
            self._on_tick()

    def _obey(self, caught: Sequence[int]) -> None:
        if len(caught) > 1:
            raise KeyboardInterrupt
        if caught:
            self.stop(f"interrupted by {signal.Signals(caught[0]).name}", grace=None)

    def _act(self, action: Action) -> None:
        match action:
            case Start(number, unit, slots):
                self._executor.launch(number, self._task(unit), slots, self._policy)
            case End(number):
                self._executor.end([number], self._grace)
            case Release(number):
                self._release(number)
            case Drop(unit):
                self._dropped(unit)

    def _heard(self, event: ExecutorEvent) -> None:
        match event:
            case Gained(slots):
                self.apply(SlotsGained(tuple((slot.index, slot.device) for slot in slots)))
            case Lost(slots):
                self.apply(SlotsLost(tuple(slot.index for slot in slots)))
            case Launched(number, pid):
                if (running := self._scheduler.running.get(number)) is not None:
                    self._pids[number] = pid
                    self.apply(*(Started(num, running.attempt) for num in running.left))
                    self._happened("started", running, pid)
            case Woken(number, index, at):
                if (running := self._scheduler.running.get(number)) is not None:
                    self._woken(running, index, at)
            case Said(number, message):
                if (running := self._scheduler.running.get(number)) is not None:
                    self._said(running, number, message)
            case Finished():
                if (running := self._scheduler.running.get(event.number)) is not None:
                    self._finished(running, event)
                    if running.unit.fed:
                        self.apply(Emptied(event.number))

    def _finished(self, running: RunningUnit, event: Finished) -> None:
        pid = self._pids.pop(event.number, None)
        if event.out_of_memory == "host":
            self._out_of_host_memory(event)
        again = self._again(running, event)
        if again is not None:
            self._happened("retried", running, pid, event)
            self.apply(Queued((again,), "again"))
            return
        attempts, slot = (running.attempt, running.slots[0]) if event.began else (running.unit.attempts, -1)
        outcome = TaskOutcome(
            running.unit.nums[0],
            event.state,
            event.value,
            event.error,
            event.traceback,
            event.seconds,
            attempts,
            slot,
            event.moved,
        )
        self._conclude(running, outcome, pid)

    def _again(self, running: RunningUnit, event: Finished) -> Unit | None:
        """Return the unit of the next attempt; None if there is none."""
        ends = running.wishes and not running.unit.fed
        if event.state not in ("failed", "lost") or self._scheduler.stopping or ends or not event.began:
            return None
        unit = self._scheduler.rest(running)
        if not unit.nums:
            return None
        devices = tuple(dict.fromkeys(self._scheduler.device(index) for index in running.slots))
        if not unit.alone_on:
            if event.out_of_memory == "device" and not any(map(is_cpu, devices)):
                return replace(unit, alone_on=devices)
            if event.out_of_memory == "host":
                machines = set(map(machine, devices))
                there = [
                    device
                    for index in self._scheduler.slots
                    if machine(device := self._scheduler.device(index)) in machines
                ]
                if len(there) > len(running.slots):
                    return replace(unit, alone_on=tuple(dict.fromkeys(there)))
        return replace(unit, attempts=running.attempt) if running.attempt <= self._policy.retries else None

    def _happened(self, kind: EventKind, running: RunningUnit, pid: int | None, event: Finished | None = None) -> None:
        error, trace = (None, None) if event is None else (event.error, event.traceback)
        num, slot = running.unit.nums[0], running.slots[0]
        self._tell(TaskEvent(kind, num, slot, running.attempt, time.time(), pid, error, trace), running.unit)


@contextmanager
def _signals_caught() -> Iterator[list[int]]:
    """Yield a list to which SIGINTs and SIGTERMs are appended; they have no other effect in the meantime."""
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
