"""Scheduler, which decides when and on which slots units run: a pure state machine without processes, clock and files.

It receives events (`trainyard.sweep.events`), each of which is already in the manifest, and returns actions. The
same events give the same actions: after a replay of a manifest, it has the state of the scheduler that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from trainyard.sweep.events import (
    FINAL,
    Action,
    Asked,
    Began,
    Drop,
    Emptied,
    End,
    Ended,
    Event,
    Inherited,
    JobState,
    Joined,
    Paused,
    Proposed,
    Queued,
    Release,
    Reported,
    SlotsGained,
    SlotsLost,
    Start,
    Started,
    Stopping,
    Unit,
    Wish,
)
from trainyard.sweep.waiting import Slots, WaitingUnits, device_names
from trainyard.track.sweep_position import Rungs

_NO_CHANGE = frozenset({Proposed, Started, Reported, Inherited})
"""Events that do not allow additional units to start."""


@dataclass
class RunningUnit:
    """Unit with a process.

    Attributes:
        left: its jobs that have not ended, in the order of lanes.
        slots: the indices of its slots.
        wishes: the requests to its jobs, by number.
    """

    unit: Unit
    left: dict[int, None]
    slots: tuple[int, ...]
    wishes: dict[int, Wish] = field(default_factory=dict)

    @property
    def attempt(self) -> int:
        """The attempt's number, from 1."""
        return self.unit.attempts + 1


class Scheduler:
    """Assigns units to slots. An event costs O(log n), where n counts jobs.

    Attributes:
        running: the units that have a process, by number.
        stopping: the reason why no more units start; empty while units start.
        rungs: the rungs at which a job reports, as last queued; only for jobs that report.
        wished: the requests to jobs that are not fulfilled yet.
    """

    def __init__(self) -> None:
        self.running: dict[int, RunningUnit] = {}
        self.stopping = ""
        self.rungs: dict[int, Rungs] = {}
        self.wished: dict[int, Wish] = {}
        self._slots = Slots()
        self._waiting = WaitingUnits(self._slots)
        self._states: dict[int, JobState] = {}
        self._unit_of: dict[int, int] = {}
        self._next = 0
        self._handlers: dict[type, Callable[[Any], Iterable[Action]]] = {
            Began: self._began,
            SlotsGained: self._slots_gained,
            SlotsLost: self._slots_lost,
            Proposed: self._proposed,
            Queued: self._queued,
            Started: self._started,
            Joined: self._joined,
            Emptied: self._emptied,
            Inherited: self._inherited,
            Reported: self._reported,
            Asked: self._asked,
            Paused: self._paused,
            Ended: self._ended,
            Stopping: self._stopping,
        }

    def handle(self, event: Event) -> list[Action]:
        """Process an event, and return the actions to execute, in order.

        Raises:
            ValueError: the event is impossible: its job is unknown, or it queues a finished job.
        """
        actions = list(self._handlers[type(event)](event))
        if type(event) in _NO_CHANGE:
            return actions
        while not self.stopping and (taken := self._waiting.take()) is not None:
            number, unit, slots = taken
            wishes = {num: self.wished[num] for num in unit.nums if num in self.wished}  # in a stack that has failed
            self.running[number] = RunningUnit(unit, dict.fromkeys(unit.nums), slots, wishes)
            for num in unit.nums:
                self._states[num] = "running"
            actions.append(Start(number, unit, slots))
            if wishes and not unit.fed:
                actions.append(End(number))
        return actions

    # -- what others may ask -------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether units run or wait."""
        return bool(self.running or len(self._waiting))

    @property
    def vacant(self) -> int:
        """Number of slots for which there is no unit."""
        return 0 if len(self._waiting) or self.stopping else self._slots.vacant

    @property
    def demand(self) -> int:
        """Number of slots of running units, and of units that wait for slots."""
        return sum(len(it.slots) for it in self.running.values()) + self._waiting.demand

    @property
    def slots(self) -> tuple[int, ...]:
        """Indices of all slots."""
        return self._slots.indices

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices of all slots, each once."""
        return device_names(self._slots, self._slots.indices)

    def device(self, index: int) -> str:
        """Return the device of a slot."""
        return self._slots.device(index)

    def state(self, num: int) -> JobState | None:
        """Return the state of a job; None if there is no such job."""
        return self._states.get(num)

    def unit_of(self, num: int) -> int | None:
        """Return the number of the unit in which a job runs; None if it does not run."""
        number = self._unit_of.get(num)
        return number if number in self.running else None

    def waiting(self) -> Iterator[Unit]:
        """Yield the waiting units in the order of their numbers."""
        return self._waiting.units()

    def rest(self, running: RunningUnit) -> Unit:
        """Return the unit of the remaining jobs of a running unit."""
        unit = replace(running.unit, nums=tuple(running.left))
        if not unit.fed:
            return unit
        own = tuple((num, rungs) for num in unit.nums if (rungs := self.rungs.get(num)) is not None)
        return replace(unit, rungs=None, own_rungs=own)

    def is_waiting(self, num: int) -> bool:
        """Return whether a job waits for a slot."""
        number = self._unit_of.get(num)
        return number is not None and number in self._waiting

    @property
    def snapshot(self) -> dict[str, Any]:
        """The complete state that determines the next actions, for the comparison of two schedulers."""
        numbers = sorted(set(self._unit_of.values()))
        waiting = {number: self._waiting[number] for number in numbers if number in self._waiting}
        return {
            "states": self._states,
            "units": self._unit_of,
            "running": {number: (it.unit, list(it.left), it.slots, it.wishes) for number, it in self.running.items()},
            "waiting": waiting,
            "slots": {name: (it.slots, it.free, list(it.alone), it.held) for name, it in self._slots.devices.items()},
            "stopping": self.stopping,
            "next": self._next,
            "rungs": self.rungs,
            "wished": self.wished,
        }

    # -- events --------------------------------------------------------------------------------------------------------

    def _began(self, event: Began) -> Iterable[Action]:
        self.stopping = ""
        self._slots = Slots()
        self._waiting = WaitingUnits(self._slots)
        for num, state in self._states.items():
            if state == "running":
                self._states[num] = "waiting"
        self._unit_of.clear()
        self.running.clear()
        return ()

    def _slots_gained(self, event: SlotsGained) -> Iterable[Action]:
        for index, device in event.slots:
            self._slots.add(index, device)
        self._waiting.slots_gained()
        return ()

    def _slots_lost(self, event: SlotsLost) -> Iterable[Action]:
        gone = set(event.indices)
        for index in event.indices:
            self._slots.remove(index)
        self._waiting.slots_lost()
        for number in [number for number, it in self.running.items() if not gone.isdisjoint(it.slots)]:
            lost = self.running[number]
            if len(lost.slots) > 1:
                yield End(number)  # what is left of it elsewhere
            unit = self.rest(lost)
            self._dissolve(number)
            if unit.nums:
                self._add(unit, behind=True)

    def _proposed(self, event: Proposed) -> Iterable[Action]:
        self._states.setdefault(event.num, "waiting")
        if event.rungs is not None:
            self.rungs[event.num] = event.rungs
        return ()

    def _queued(self, event: Queued) -> Iterable[Action]:
        for unit in event.units:
            for num in unit.nums:
                if self._states.get(num, "done") in FINAL:
                    raise ValueError(f"job {num} cannot run: its state is {self._states.get(num, 'unknown')}")
                self._leave(num)
            self._add(unit, behind=event.why == "again")
        return ()

    def _started(self, event: Started) -> Iterable[Action]:
        if event.num not in self._unit_of:  # the record of a version that did not queue
            self._states[event.num] = "running"
        return ()

    def _joined(self, event: Joined) -> Iterable[Action]:
        running = self.running[event.unit]
        for num in event.nums:
            if not self.is_waiting(num):
                raise ValueError(f"job {num} cannot join: its state is {self._states.get(num, 'unknown')}")
            self._leave(num)
            running.left[num] = None
            self._unit_of[num] = event.unit
            self._states[num] = "running"
        running.unit = replace(running.unit, nums=running.unit.nums + event.nums)
        return ()

    def _emptied(self, event: Emptied) -> Iterable[Action]:
        if event.unit in self.running:
            self._dissolve(event.unit)
        return ()

    def _inherited(self, event: Inherited) -> Iterable[Action]:
        return ()

    def _reported(self, event: Reported) -> Iterable[Action]:
        return ()

    def _asked(self, event: Asked) -> Iterable[Action]:
        number = self.unit_of(event.num)
        if number is not None:
            self.wished[event.num] = event.wish
            running = self.running[number]
            first = not running.wishes
            running.wishes[event.num] = event.wish
            if running.unit.fed and not self.stopping:
                yield Release(number)
            elif first and not self.stopping:
                yield End(number)

    def _paused(self, event: Paused) -> Iterable[Action]:
        self._leave(event.num)
        self.wished.pop(event.num, None)
        self._states[event.num] = "paused"
        return ()

    def _ended(self, event: Ended) -> Iterable[Action]:
        self._leave(event.num)
        self.wished.pop(event.num, None)
        self._states[event.num] = event.state
        return ()

    def _stopping(self, event: Stopping) -> Iterable[Action]:
        if not self.stopping:
            self.stopping = event.why
            for unit in self._waiting.clear():
                for num in unit.nums:
                    del self._unit_of[num]
                yield Drop(unit)
            for number, running in self.running.items():
                if running.unit.fed or not running.wishes:
                    yield End(number)

    # -- units ---------------------------------------------------------------------------------------------------------

    def _add(self, unit: Unit, *, behind: bool) -> None:
        own_rungs = dict(unit.own_rungs)
        for num in unit.nums:
            self._states[num] = "waiting"
            rungs = own_rungs.get(num, unit.rungs)
            if rungs is not None:
                self.rungs[num] = rungs
            else:
                self.rungs.pop(num, None)
        if self.stopping:
            return
        number, self._next = self._next, self._next + 1
        for num in unit.nums:
            self._unit_of[num] = number
        self._waiting.add(number, unit, behind=behind)

    def _leave(self, num: int) -> None:
        """Remove a job from its unit. When its last job leaves, a unit ends and its slots become free, unless other
        jobs can join."""
        number = self._unit_of.pop(num, None)
        if number is None:
            return
        if number in self._waiting:
            if len(self._waiting[number].nums) > 1:
                self._waiting.shrink(number, num)
            else:
                self._waiting.remove(number)
            return
        running = self.running[number]
        del running.left[num]
        running.wishes.pop(num, None)
        if not running.left and not running.unit.fed:
            self._dissolve(number)

    def _dissolve(self, number: int) -> None:
        running = self.running.pop(number)
        for num in running.left:
            del self._unit_of[num]
        for name in running.unit.alone_on:
            self._slots.devices[name].held = False
            self._slots.show(name)
        for index in running.slots:
            self._slots.free(index)
