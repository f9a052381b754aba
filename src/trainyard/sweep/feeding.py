"""Feeding of stacks: a head gives waiting jobs to stacks with free lanes, and receives the jobs that leave them.

Messages of a stack are described in `trainyard.sweep.lane_source`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import cloudpickle  # type: ignore[import-untyped]

from trainyard.sweep.decisions import Decision
from trainyard.sweep.events import Event, Joined, Started, Unit
from trainyard.sweep.executor.base import Executor
from trainyard.sweep.executor.task import TaskOutcome
from trainyard.sweep.lane_source import Given, Leave, Left
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import spans
from trainyard.sweep.proposers.base import Proposal, Proposer, Prune
from trainyard.sweep.scheduler import RunningUnit, Scheduler
from trainyard.sweep.stacks import StackPlanner
from trainyard.sweep.units import UnitTasks
from trainyard.sweep.worker_tasks import JobDone

PATIENCE = 2
"""Number of unsuccessful requests of a stack, while a proposer may still learn, before its free lanes are cut out."""


class FeedingHead(Protocol):
    """Actions of the head for its stacks."""

    def apply(self, *events: Event) -> None:
        """Log events, pass them on, and act."""

    def propose(self) -> Sequence[Proposal]:
        """Ask the proposer for the work of one free slot, add it, and return it."""

    def seated(self, nums: Sequence[int], stack: str) -> None:
        """Record jobs that join a stack."""

    def job_left(self, running: RunningUnit, outcome: TaskOutcome) -> None:
        """Conclude a job that has left a stack that continues."""

    def job_refused(self, running: RunningUnit, num: int, reason: str) -> None:
        """Run a job alone, because it cannot train in a stack."""


@dataclass
class _Stack:
    """Running stack.

    Attributes:
        name: its first jobs, for users.
        lanes: the job in each lane, and the epoch and the iteration from which it trains there at this width.
        width: its lanes.
        joined: the time at which each of its jobs joined.
        in_vain: the number of consecutive unsuccessful requests.
        wants: the number of free lanes for which it waits for an answer; 0 if it trains.
        idle: whether all its lanes are free.
        released: the jobs that it was asked to release.
        unfed: whether it has reported that no jobs join or leave it.
    """

    name: str
    lanes: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    width: int = 0
    joined: dict[int, float] = field(default_factory=dict)
    in_vain: int = 0
    wants: int = 0
    idle: bool = False
    released: set[int] = field(default_factory=set)
    unfed: bool = False


class Feeding:
    """Feeds the stacks of a head.

    Args:
        head: the head.
        executor: sends answers to stacks.
        scheduler: the scheduler, which has the waiting units.
        manifest: the manifest, in which lanes are recorded.
        units: creates the data for stacks.
        planner: knows the kinds of jobs.
        proposer: is asked if too few jobs wait.
        enabled: whether stacks are fed at all.
    """

    def __init__(
        self,
        head: FeedingHead,
        executor: Executor,
        scheduler: Scheduler,
        manifest: Manifest,
        units: UnitTasks,
        planner: StackPlanner,
        proposer: Proposer,
        enabled: bool,
    ) -> None:
        self._head = head
        self._executor = executor
        self._scheduler = scheduler
        self._manifest = manifest
        self._units = units
        self._planner = planner
        self._proposer = proposer
        self._learns = type(proposer).told is not Proposer.told
        self._returns = proposer.returns
        self._enabled = enabled and planner.has_lanes
        self._stacks: dict[int, _Stack] = {}
        self._refused: set[int] = set()

    def fed(self, unit: Unit) -> Unit:
        """Return a unit that is to be queued, with whether jobs join it."""
        decision = self._manifest.entries[unit.nums[0]].decision
        in_lanes = len(unit.nums) > 1 or (decision is not None and decision.width > 0)
        feeds = self._enabled and in_lanes and unit.slots == 1 and self._units.jobs[unit.nums[0]].origin is None
        return replace(unit, fed=feeds)

    def began(self, number: int, unit: Unit) -> None:
        """Record a unit that starts."""
        if unit.fed:
            self._stacks[number] = _Stack(spans(unit.nums), joined=dict.fromkeys(unit.nums, time.monotonic()))

    def said(self, running: RunningUnit, number: int, message: Mapping[str, Any]) -> None:
        """Handle a message of a stack."""
        stack = self._stacks[number]
        match message:
            case {"want": count, "wait": waits}:
                stack.wants, stack.idle = count, waits or (self._learns and count == stack.width)
                self._serve(number)
            case {"placed": places, "width": width}:
                self._place(running, stack, places, width)
                self._executor.answer(number, b"")
                self.release(number)
            case {"unfed": True}:
                stack.unfed = True
                self.release(number)
            case {"left": index}:
                num = running.unit.nums[index]
                stack.released.discard(num)
                if num in running.left:
                    self._head.job_left(running, self._outcome(running, stack, num, Left.of(message)))
            case {"refused": index, "reason": reason}:
                num = running.unit.nums[index]
                self._refused.add(num)
                if num in running.left:
                    self._head.job_refused(running, num, reason)

    def release(self, number: int, grace: float | None = None) -> None:
        """Ask a stack to release the jobs with pending requests as soon as it can.

        Args:
            number: the number of its unit.
            grace: the seconds after which a stack that cannot release them, and therefore ends, is killed; None: never.
        """
        stack, running = self._stacks.get(number), self._scheduler.running.get(number)
        if stack is None or running is None or not (stack.width or stack.unfed):
            return
        asked = [num for num in running.wishes if num in running.left and num not in stack.released]
        stack.released.update(asked)
        if asked and stack.unfed:
            self._executor.end([number], grace)
            return
        last = {num: index for index, num in enumerate(running.unit.nums)}
        for num in asked:
            leave = Leave(last[num], pauses=running.wishes[num] == "pause")
            self._executor.answer(number, cloudpickle.dumps(leave))

    def serve(self) -> None:
        """Give jobs to stacks that wait for jobs; end stacks if no jobs will come, or if other units need the slot."""
        for number, stack in list(self._stacks.items()):
            if number not in self._scheduler.running:
                del self._stacks[number]
            elif stack.wants:
                self._serve(number)

    def _serve(self, number: int) -> None:
        stack, running = self._stacks[number], self._scheduler.running[number]
        if found := self._found(running, stack.wants):
            stack.in_vain = stack.wants = 0
            self._give(number, stack, running, found)
        elif not (self._may_come if stack.idle else self._are_leaving(stack, running)):
            stack.in_vain += 1
            stack.wants = 0
            may_be_new = self._learns and self._proposer.may_be_new and stack.in_vain < PATIENCE
            hopes = not stack.idle and (may_be_new or self._come_back)
            self._answer(number, Given(0, (), (), not hopes or bool(self._scheduler.stopping)))

    def _are_leaving(self, stack: _Stack, running: RunningUnit) -> bool:
        """Return whether results of jobs that have left their lanes are still to come, which may lead to new jobs."""
        if not self._learns or self._scheduler.stopping:
            return False
        return len(running.left) > stack.width - stack.wants

    @property
    def _come_back(self) -> bool:
        """Whether training jobs will pause and continue afterwards, so that all lanes will be needed again."""
        left = (num for running in self._scheduler.running.values() for num in running.left)
        return self._returns and any(num in self._scheduler.rungs for num in left)

    @property
    def _may_come(self) -> bool:
        """Whether a job may come for an empty stack: others still run, and no unit waits for its slot."""
        runs = any(running.left for running in self._scheduler.running.values())
        return runs and not self._scheduler.stopping and next(self._scheduler.waiting(), None) is None

    def _found(self, running: RunningUnit, count: int) -> list[tuple[int, Unit]]:
        """Return jobs for free lanes, in the order in which they wait, with their units."""
        if self._scheduler.stopping:
            return []
        kind = self._planner.kind(self._units.jobs[running.unit.nums[0]])
        found = self._joinable(kind, count)
        while len(found) < count and (proposals := self._head.propose()):
            before, found = len(found), self._joinable(kind, count)
            if len(found) == before and any(not isinstance(each, Prune) for each in proposals):
                break  # what comes is of another kind, and waits for a slot
        return found

    def _joinable(self, kind: str | None, count: int) -> list[tuple[int, Unit]]:
        found: list[tuple[int, Unit]] = []
        for unit in self._scheduler.waiting():
            if len(found) >= count:
                break
            if unit.slots == 1 and not unit.alone_on and not unit.attempts:
                found += [(num, unit) for num in unit.nums if self._may_join(num, kind)]
        return found[:count]

    def _may_join(self, num: int, kind: str | None) -> bool:
        decision = self._manifest.entries[num].decision
        in_own_lane = decision is not None and decision.width > 0  # as it was recorded
        return num not in self._refused and not in_own_lane and self._planner.kind(self._units.jobs[num]) == kind

    def _give(self, number: int, stack: _Stack, running: RunningUnit, found: Sequence[tuple[int, Unit]]) -> None:
        nums = tuple(num for num, _ in found)
        first = len(running.unit.nums)
        self._head.apply(Joined(number, nums), *(Started(num, running.attempt) for num in nums))
        stack.joined |= dict.fromkeys(nums, time.monotonic())
        self._head.seated(nums, stack.name)
        jobs, positions = self._units.joining({num: unit.rungs_of(num) for num, unit in found}, stack.name)
        self._answer(number, Given(first, jobs, positions, False))

    def _answer(self, number: int, given: Given) -> None:
        self._executor.answer(number, cloudpickle.dumps(given))

    def _place(self, running: RunningUnit, stack: _Stack, places: Sequence[Sequence[int]], width: int) -> None:
        """Record in which lanes the jobs of a stack train from here on."""
        if width != stack.width:
            stack.lanes, stack.width = {}, width
        nums = running.unit.nums
        stack.lanes |= {lane: (nums[index], epoch, iteration) for index, lane, epoch, iteration in places}
        here = [(lane, *own) for lane, own in sorted(stack.lanes.items()) if own[0] in running.left]
        if not here:
            return
        before = self._decision(here[0][1] if len(here) == 1 else nums[0])
        lanes, jobs, epochs, iters = zip(*here, strict=True)
        now = replace(before, nums=jobs, lanes=lanes, width=width, epochs=epochs, iters=iters)
        if any(self._decision(num) != now for num in jobs):
            self._manifest.decide([now])

    def _decision(self, num: int) -> Decision:
        decision = self._manifest.entries[num].decision
        assert decision is not None, "recorded before the jobs are run"
        return decision

    def _outcome(self, running: RunningUnit, stack: _Stack, num: int, left: Left) -> TaskOutcome:
        value = JobDone(left.value) if left.state == "done" else None
        seconds = time.monotonic() - stack.joined.get(num, time.monotonic())
        return TaskOutcome(
            num, left.state, value, left.error, seconds=seconds, attempts=running.attempt, slot=running.slots[0]
        )
