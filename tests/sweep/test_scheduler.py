"""The scheduler as a state machine: whatever happens in whatever order, and however often its head is killed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trainyard.sweep.event_records import event_of, to_record
from trainyard.sweep.events import (
    FINAL,
    Asked,
    Began,
    Drop,
    Emptied,
    End,
    Ended,
    Event,
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
)
from trainyard.sweep.scheduler import Scheduler
from trainyard.track.sweep_position import Rungs

ENDS = ("done", "failed", "timeout", "lost", "interrupted", "stopped")


class Sweeps(RuleBasedStateMachine):
    """Plays the executor, the proposer and the manifest of a scheduler.

    Attributes:
        log: the events in the manifest, as they are read back.
        processes: what was started and has not ended: the jobs and slots, by the number of the unit.
        queue: the units that were queued and neither started nor dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Event] = []
        self.scheduler = Scheduler()
        self.processes: dict[int, tuple[list[int], tuple[int, ...]]] = {}
        self.queue: list[Unit] = []
        self.slots: dict[int, str] = {}
        self.states: dict[int, str] = {}
        self.stopping = False
        self.jobs = 0
        self.fed: set[int] = set()  # units that others may join, by number

    def tell(self, event: Event) -> None:
        read = event_of(json.loads(json.dumps(to_record(event))))
        assert read == event
        assert read is not None
        self.log.append(read)
        for action in self.scheduler.handle(read):
            self.act(action)

    def act(self, action: Any) -> None:
        match action:
            case Start(number, unit, slots):
                (queued,) = (each for each in self.queue if each.nums == unit.nums)
                self.queue.remove(queued)
                assert not self.stopping
                assert len(slots) == unit.slots
                at_work = [each for _, own in self.processes.values() for each in own]
                assert not set(slots) & set(at_work), "a slot runs one unit at a time"
                assert set(slots) <= self.slots.keys()
                devices = [self.slots[index] for index in slots]
                assert len(set(devices)) == len(devices) or "cpu" in devices, "a wide one takes a device once"
                for nums, _ in self.processes.values():
                    assert not set(nums) & set(unit.nums), "no job runs twice at once"
                assert not any(self.states[num] in FINAL for num in unit.nums)
                beside = {self.slots[index] for index in at_work}
                assert not beside & set(unit.alone_on)
                self.processes[number] = (list(unit.nums), slots)
                if unit.fed:
                    self.fed.add(number)
                self.states.update(dict.fromkeys(unit.nums, "running"))
            case End(number):
                assert number in self.processes
            case Release(number):
                assert number in self.fed & self.processes.keys()
                assert self.scheduler.running[number].wishes
            case Drop(unit):
                (dropped,) = (each for each in self.queue if each.nums == unit.nums)
                self.queue.remove(dropped)

    # -- what the proposer does ----------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 3), slots=st.sampled_from([1, 1, 1, 2]), expected=st.none() | st.floats(0, 9))
    def propose(self, count: int, slots: int, expected: float | None) -> None:
        """Propose a unit; of three jobs, one that others may join."""
        nums = tuple(range(self.jobs, self.jobs + count))
        self.jobs += count
        for num in nums:
            self.states[num] = "waiting"
            self.tell(Proposed(num))
        rungs = Rungs((1, 2), until=2) if count == 2 else None
        own = ((nums[0], Rungs((3,))),) if count == 3 else ()
        self.put(Unit(nums, slots, expected=expected, rungs=rungs, own_rungs=own, fed=count == 3 and slots == 1), "")

    def put(self, unit: Unit, why: str) -> None:
        self.states.update(dict.fromkeys(unit.nums, "waiting"))
        if not self.stopping:
            self.queue.append(unit)
        self.tell(Queued((unit,), why))

    @precondition(lambda self: any(state in ("paused", "failed", "lost") for state in self.states.values()))
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        nums = [num for num, state in self.states.items() if state in ("paused", "failed", "lost")]
        self.put(Unit((data.draw(st.sampled_from(nums)),)), "promoted")

    # -- what the executor tells ---------------------------------------------------------------------------------------

    @rule(index=st.integers(0, 4), device=st.sampled_from(["cpu", "cuda:0", "cuda:1"]))
    def slot_gained(self, index: int, device: str) -> None:
        if index not in self.slots:
            self.slots[index] = device
            self.tell(SlotsGained(((index, device),)))

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def slot_lost(self, data: st.DataObject) -> None:
        index = data.draw(st.sampled_from(sorted(self.slots)))
        del self.slots[index]
        for number, (nums, slots) in list(self.processes.items()):
            if index in slots:
                unit = self.scheduler.rest(self.scheduler.running[number])
                assert unit.nums == tuple(nums)
                if len(slots) == 1:  # else the rest of it is ended by an action
                    del self.processes[number]
                if not self.stopping and nums:
                    self.queue.append(unit)
                self.states.update(dict.fromkeys(nums, "waiting"))
                gone = number
                if len(slots) > 1:
                    self.processes[gone] = ([], ())
        self.tell(SlotsLost((index,)))
        self.processes = {number: it for number, it in self.processes.items() if it[0] or number in self.fed}

    @property
    def at_work(self) -> list[int]:
        return sorted(number for number, (nums, _) in self.processes.items() if nums)

    def one_at_work(self, data: st.DataObject) -> tuple[int, int]:
        number = data.draw(st.sampled_from(self.at_work))
        return number, data.draw(st.sampled_from(self.processes[number][0]))

    def leave(self, number: int, nums: list[int]) -> None:
        """Take jobs out of their process before the scheduler is told: it may reuse their slots at once."""
        left = [num for num in self.processes[number][0] if num not in nums]
        if left or number in self.fed:
            self.processes[number] = (left, self.processes[number][1])
        else:
            del self.processes[number]

    @precondition(lambda self: self.at_work)
    @rule(data=st.data())
    def started(self, data: st.DataObject) -> None:
        self.tell(Started(self.one_at_work(data)[1]))

    @precondition(lambda self: self.at_work)
    @rule(data=st.data(), state=st.sampled_from(ENDS))
    def ended(self, data: st.DataObject, state: Any) -> None:
        number, num = self.one_at_work(data)
        self.leave(number, [num])
        self.states[num] = state
        self.tell(Ended(num, state, 1.5, 0.5))

    @precondition(lambda self: self.at_work)
    @rule(data=st.data())
    def paused(self, data: st.DataObject) -> None:
        number, num = self.one_at_work(data)
        self.tell(Reported(num, 2, 0.25))
        self.leave(number, [num])
        self.states[num] = "paused"
        self.tell(Paused(num))

    @precondition(lambda self: self.fed & self.processes.keys() and self.queue)
    @rule(data=st.data())
    def joined(self, data: st.DataObject) -> None:
        """A job that waits, alone or in a stack, takes a lane of one that runs."""
        number = data.draw(st.sampled_from(sorted(self.fed & self.processes.keys())))
        unit = data.draw(st.sampled_from(self.queue))
        num = data.draw(st.sampled_from(unit.nums))
        self.queue.remove(unit)
        if len(unit.nums) > 1:
            self.queue.append(replace(unit, nums=tuple(each for each in unit.nums if each != num)))
        self.processes[number][0].append(num)
        self.states[num] = "running"
        rungs = self.scheduler.rungs.get(num)
        self.tell(Joined(number, (num,)))
        assert self.scheduler.unit_of(num) == number
        assert self.scheduler.rungs.get(num) == rungs
        with pytest.raises(ValueError, match=f"job {num} cannot join: its state is running"):
            self.scheduler.handle(Joined(number, (num,)))

    @precondition(lambda self: self.fed & self.processes.keys())
    @rule(data=st.data())
    def emptied(self, data: st.DataObject) -> None:
        """The process of a stack ends, whose jobs have all left; of those that have not, it was told before."""
        number = data.draw(st.sampled_from(sorted(self.fed & self.processes.keys())))
        if not self.processes[number][0]:
            del self.processes[number]
            self.tell(Emptied(number))

    @precondition(lambda self: self.at_work)
    @rule(data=st.data(), alone=st.booleans())
    def tried_again(self, data: st.DataObject, alone: bool) -> None:
        number = data.draw(st.sampled_from(self.at_work))
        nums, slots = self.processes[number]
        rest = self.scheduler.rest(self.scheduler.running[number])
        own = {num: rest.rungs_of(num) for num in nums}
        unit = replace(rest, attempts=1)
        if alone:
            unit = replace(unit, alone_on=tuple(sorted({self.slots[index] for index in slots})))
        self.leave(number, nums)
        self.put(unit, "again")
        assert {num: self.scheduler.rungs.get(num) for num in nums} == own

    @precondition(lambda self: self.at_work)
    @rule(data=st.data())
    def divided(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.at_work))
        nums = self.processes[number][0]
        self.leave(number, nums)
        units = tuple(Unit((num,)) for num in nums)
        if not self.stopping:
            self.queue.extend(units)
        self.states.update(dict.fromkeys(nums, "waiting"))
        self.tell(Queued(units, "again"))

    # -- what people do ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.at_work)
    @rule(data=st.data(), wish=st.sampled_from(["pause", "stop"]))
    def asked(self, data: st.DataObject, wish: Any) -> None:
        self.tell(Asked(self.one_at_work(data)[1], wish, "by hand"))

    @precondition(lambda self: self.queue)
    @rule(data=st.data(), stop=st.booleans())
    def taken_out_of_the_queue(self, data: st.DataObject, stop: bool) -> None:
        unit = data.draw(st.sampled_from(self.queue))
        num = data.draw(st.sampled_from(unit.nums))
        self.queue.remove(unit)
        if len(unit.nums) > 1:
            self.queue.append(replace(unit, nums=tuple(each for each in unit.nums if each != num)))
        self.states[num] = "stopped" if stop else "paused"
        self.tell(Ended(num, "stopped") if stop else Paused(num))

    @rule()
    def stopped(self) -> None:
        waiting = list(self.queue)
        self.stopping = True
        self.tell(Stopping("interrupted by SIGINT"))
        assert not self.queue, waiting

    @rule()
    def killed_and_begun_again(self) -> None:
        """The head dies with all that runs; the next one replays the manifest and queues what is left."""
        self.scheduler = self.replayed()
        self.processes, self.queue, self.slots, self.stopping = {}, [], {}, False
        self.fed = set()
        self.states = {num: "waiting" if state == "running" else state for num, state in self.states.items()}
        self.tell(Began())
        left = [num for num, state in self.states.items() if state not in FINAL and state != "paused"]
        for num in left:
            self.put(Unit((num,)), "")

    # -- what holds ----------------------------------------------------------------------------------------------------

    def replayed(self) -> Scheduler:
        scheduler = Scheduler()
        for event in self.log:
            scheduler.handle(event)
        return scheduler

    @invariant()
    def replayed_it_stands_where_it_stands(self) -> None:
        assert self.replayed().snapshot == self.scheduler.snapshot

    @invariant()
    def what_runs_knows_what_is_wished(self) -> None:
        wished = {num: wish for it in self.scheduler.running.values() for num, wish in it.wishes.items()}
        running = {num for it in self.scheduler.running.values() for num in it.left}
        assert wished == {num: wish for num, wish in self.scheduler.wished.items() if num in running}

    @invariant()
    def each_job_has_one_state(self) -> None:
        assert {num: self.scheduler.state(num) for num in self.states} == self.states
        running = [num for nums, _ in self.processes.values() for num in nums]
        waiting = [num for unit in self.queue for num in unit.nums]
        assert len(running + waiting) == len(set(running + waiting))
        assert set(running) == {num for num, state in self.states.items() if state == "running"}
        assert set(waiting) <= {num for num, state in self.states.items() if state == "waiting"}
        assert self.scheduler.busy == bool(self.processes or waiting)

    @invariant()
    def no_slot_is_idle_while_a_unit_could_run(self) -> None:
        busy = {index for _, slots in self.processes.values() for index in slots}
        free = self.slots.keys() - busy
        alone = any(unit.alone_on for unit in self.queue)
        alone |= any(it.unit.alone_on for it in self.scheduler.running.values())
        wide = any(unit.slots > 1 for unit in self.queue)
        if free and self.queue and not alone and not wide:
            raise AssertionError(f"{sorted(free)} are idle, and {self.queue} wait")
        if self.queue and not self.processes and not self.stopping:
            cpu = sum(device == "cpu" for device in self.slots.values())
            capacity = cpu + len(set(self.slots.values()) - {"cpu"})
            assert all(unit.slots > capacity for unit in self.queue), "something runs where something can"


TestSweeps = Sweeps.TestCase
TestSweeps.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_job_that_is_done_is_not_queued_again() -> None:
    scheduler = Scheduler()
    for event in (Proposed(0), Queued((Unit((0,)),)), SlotsGained(((0, "cpu"),)), Ended(0, "done")):
        scheduler.handle(event)
    with pytest.raises(ValueError, match="job 0 cannot run: its state is done"):
        scheduler.handle(Queued((Unit((0,)),)))
    with pytest.raises(ValueError, match="job 7 cannot run: its state is unknown"):
        scheduler.handle(Queued((Unit((7,)),)))


def test_a_proposer_is_asked_for_as_many_units_as_there_are_idle_slots() -> None:
    scheduler = Scheduler()
    scheduler.handle(SlotsGained(((0, "cpu"), (1, "cpu"), (2, "cpu"))))
    assert scheduler.vacant == 3
    for num in range(4):
        scheduler.handle(Proposed(num))
    scheduler.handle(Queued((Unit((0,)),)))
    assert scheduler.vacant == 2
    scheduler.handle(Queued(tuple(Unit((num,)) for num in (1, 2, 3))))
    assert scheduler.vacant == 0, "one waits"
    scheduler.handle(Ended(3, "stopped"))
    scheduler.handle(Ended(1, "done"))
    assert scheduler.vacant == 1
    scheduler.handle(Stopping("enough"))
    assert scheduler.vacant == 0
