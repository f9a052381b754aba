"""Head of a sweep: the loop between its executor, its manifest, its scheduler and its proposer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainyard.errors import TrainyardError
from trainyard.sweep.by_hand import ByHand, Clone
from trainyard.sweep.clones import newest_checkpoint, tell
from trainyard.sweep.decisions import Decision
from trainyard.sweep.events import (
    Action,
    Asked,
    Ended,
    Event,
    Inherited,
    Paused,
    Queued,
    Start,
    Unit,
    Wish,
)
from trainyard.sweep.executor.base import Executor, Finished
from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.executor.task import Task, TaskEvent, TaskOutcome
from trainyard.sweep.feeding import Feeding
from trainyard.sweep.loop import Loop
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job, Stack
from trainyard.sweep.progress import SweepProgress
from trainyard.sweep.proposers.base import NewJob, Promote, Proposal, Proposer, Prune
from trainyard.sweep.pruned import of_pruned, remove_regular
from trainyard.sweep.reports import Reports
from trainyard.sweep.scheduler import RunningUnit, Scheduler
from trainyard.sweep.stacks import StackPlanner
from trainyard.sweep.steering import CommandFolder
from trainyard.sweep.tracking import SweepTracking
from trainyard.sweep.units import UnitTasks, event_of, outcomes_of
from trainyard.sweep.worker_tasks import JobDone, StackReturn
from trainyard.track.sweep_position import Rungs

FAILED = ("failed", "timeout", "lost")
Inherit = Callable[[Job, Job, int, Sequence[str]], tuple[Job, Inherited]]
"""Lets a job continue as another job that has paused at the same position, with these overrides."""
Admit = Callable[[Sequence[NewJob]], Sequence[Unit]]
"""Composes, checks and records new jobs, and returns the units of jobs to run."""


class Head(Loop):
    """Runs the jobs that a proposer proposes, until there are no more.

    Each event is written to the manifest, then passed to the scheduler and the proposer; only then does it take effect.

    Args:
        executor: the started executor.
        scheduler: the scheduler of the entire sweep.
        policy: the policy for failures.
        manifest: the manifest of the sweep.
        units: creates the tasks of units.
        tracking: follows the jobs.
        progress: shows what happens.
        proposer: proposes jobs.
        admit: adds new jobs.
        clone: creates clones.
        adopt: adds a recorded clone.
        reports: reads the reports of jobs.
        commands: the commands of users.
        planner: determines which jobs may share a stack.
        inherit: creates heirs.
        replace_job: updates a job whose overrides have changed.

    Attributes:
        results: the results of finished jobs, by number.
    """

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        policy: Policy,
        *,
        manifest: Manifest,
        units: UnitTasks,
        tracking: SweepTracking,
        progress: SweepProgress,
        proposer: Proposer,
        admit: Admit,
        clone: Clone,
        adopt: Callable[[Job], Unit],
        reports: Reports,
        commands: CommandFolder,
        planner: StackPlanner,
        inherit: Inherit,
        replace_job: Callable[[Job], object],
    ) -> None:
        super().__init__(executor, scheduler, policy)
        self.results: dict[int, JobDone] = {}
        self._manifest = manifest
        self._units = units
        self._tracking = tracking
        self._progress = progress
        self._proposer = proposer
        self._admit = admit
        self._reports = reports
        self._by_hand = ByHand(self, commands, scheduler, manifest, units, progress, clone, adopt)
        self._inherit = inherit
        self._replace = replace_job
        # Else the time of one job would end those of others, or the files of those that join would not come home.
        feeds = policy.timeout is None and executor.shares_disk
        self._feeding = Feeding(self, executor, scheduler, manifest, units, planner, proposer, feeds)

    def queue(self, units: Sequence[Unit], why: str = "") -> None:
        """Queue units to run from now on."""
        if units:
            self.apply(Queued(tuple(map(self._feeding.fed, units)), why))

    def ask_for(self, num: int, wish: Wish, why: str) -> None:
        """Ask a job to end at its next checkpoint, or not to start if it waits."""
        if self._scheduler.unit_of(num) is not None:
            self._grace = None if wish == "pause" else self._policy.grace
            self.apply(Asked(num, wish, why))
        elif wish == "prune":
            entry = self._manifest.entries[num]
            end = Ended(num, "pruned", entry.seconds or 0.0, None, why, entry.width)
            self.apply(of_pruned(end, self._reports.last))
            self._pruned(num)
        elif wish == "pause":
            entry = self._manifest.entries[num]
            self.apply(Paused(num, entry.seconds or 0.0, entry.width, by_hand=True))
            self._progress.held(self._units.jobs[num])
        else:
            self.apply(Ended(num, "stopped", error=why or None))
            self._tracking.stopped(self._units.jobs[num])
            self._progress.stopped(self._units.jobs[num])

    def obey(self) -> None:
        """Execute the commands that are not answered yet."""
        self._by_hand.obey()

    def resume(self, num: int) -> None:
        """Resume a paused job beyond the rung at which it paused."""
        rungs = self._scheduler.rungs.get(num)
        if rungs is not None and rungs.until is not None and self._reports.is_known(num, rungs.until):
            rungs = self._proposer.beyond(num)
        self.queue(self._alone([num], rungs), "resumed")
        self._progress.promoted(self._units.jobs[num], "")

    # -- what is to run ------------------------------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        if not self._scheduler.busy:
            self.obey()  # a paused job may be to go on
        while (free := self._vacant()) and (proposals := self._proposer.ask(free)):
            self.take_in(proposals)
        self._feeding.serve()
        return self._scheduler.busy

    def propose(self) -> Sequence[Proposal]:
        """Ask the proposer for the work of one free slot, add it, and return it."""
        proposals = self._proposer.ask(1)
        self.take_in(proposals)
        return proposals

    def _vacant(self) -> int:
        """Return the number of slots for which the proposer is asked; if there are none, 1, because slots come when
        there is work."""
        idle = not self._scheduler.busy and not self._scheduler.stopping and not self._scheduler.slots
        return max(self._scheduler.vacant, idle)

    def take_in(self, proposals: Sequence[Proposal]) -> None:
        """Run proposed jobs, and end pruned ones."""
        for each in proposals:
            if isinstance(each, Prune):
                self.ask_for(each.num, "prune", each.why)
        self.queue(self._admit([each for each in proposals if isinstance(each, NewJob)]))
        self._bequeath([each for each in proposals if isinstance(each, Promote) and each.source is not None])
        promoted: dict[tuple[Rungs | None, Rungs | None], list[int]] = {}  # by where they go, and where they paused
        for each in proposals:
            if isinstance(each, Promote):
                how = "" if each.source is not None else "resumed" if self._proposer.returns else "promoted"
                self._progress.promoted(self._units.jobs[each.num], how)
                promoted.setdefault((each.rungs, self._scheduler.rungs.get(each.num)), []).append(each.num)
        units = []
        for (rungs, paused), nums in promoted.items():
            alike = [num for num in nums if paused is not None and self._reports.is_known(num, paused.until)]
            stacks = self._units.stacks_of(alike)
            self._decide(stacks, "promoted together")
            units += [Unit(own, rungs=rungs) for own in stacks]
            stacked = {num for own in stacks for num in own}
            units += self._alone([num for num in nums if num not in stacked], rungs)
        self.queue(units, "promoted")

    def _bequeath(self, heirs: Sequence[Promote]) -> None:
        """Let paused jobs continue from other jobs; if a value of a job cannot change, it continues as itself."""
        for each in heirs:
            assert each.source is not None
            job, source = self._units.jobs[each.num], self._units.jobs[each.source]
            at, _ = self._reports.last[each.num]
            try:
                heir, event = self._inherit(job, source, at, each.overrides)
            except TrainyardError as error:
                self._progress.kept(job, str(error))
                continue
            self.apply(event)
            self._replace(heir)
            self._tracking.inherited(heir, self._manifest.entries[each.num].lineage)
            self._progress.inherited(heir, source, at, self._units.difference(heir, source))

    def _alone(self, nums: Sequence[int], rungs: Rungs | None) -> list[Unit]:
        """Return a unit for each of these jobs; decisions on jobs that were in a stack are recorded."""
        self._decide([[num] for num in nums], "continues as a single job")
        return [Unit((num,), self._units.jobs[num].slots, rungs=rungs) for num in nums]

    def _decide(self, groups: Iterable[Sequence[int]], note: str) -> None:
        """Record that jobs continue in these groups, otherwise as before."""
        decided = []
        for nums in map(tuple, groups):
            before = self._decision(nums[0])
            if any(self._decision(num).nums != nums or self._decision(num).width for num in nums):
                decided.append(replace(before, nums=nums, note=note, lanes=(), width=0, epochs=(), iters=()))
        self._manifest.decide(decided)

    def _decision(self, num: int) -> Decision:
        decision = self._manifest.entries[num].decision
        assert decision is not None, "recorded before the jobs are run"
        return decision

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _log(self, events: Sequence[Event]) -> Sequence[Event]:
        return self._manifest.log(*events, answer=self._by_hand.answer())

    def _told(self, event: Event) -> list[Action]:
        actions = self._scheduler.handle(event)
        tell(self._proposer, event)
        self._reports.told(event)
        return actions

    def _task(self, unit: Unit) -> Task:
        self._expect(unit.nums)
        return self._units.task(unit)

    def _act(self, action: Action) -> None:
        if isinstance(action, Start):
            self._feeding.began(action.number, action.unit)
        super()._act(action)

    def _expect(self, nums: Sequence[int]) -> None:
        self._tracking.expect(self._units.of(nums))
        for job in self._units.of(nums):
            self._reports.begin(job, self._scheduler.rungs.get(job.num))

    def _on_tick(self) -> None:
        self.obey()
        self._tracking.look()
        self._progress.tick()

    def _tell(self, event: TaskEvent, unit: Unit) -> None:
        if len(unit.nums) == 1:
            self._progress.event(event)
        elif event.kind == "started":
            self._progress.stack_started(event, self._stack(unit.nums))
        else:
            self._progress.stack_again(event, self._stack(unit.nums))

    def _stack(self, nums: Iterable[int]) -> Stack:
        return Stack(tuple(self._units.of(nums)))

    def _out_of_host_memory(self, event: Finished) -> None:
        self._progress.out_of_host_memory(event.peak, len(self._scheduler.running), here=self._executor.here)

    # -- reports -------------------------------------------------------------------------------------------------------

    def _woken(self, running: RunningUnit, index: int, at: int) -> None:
        num = running.unit.nums[index]
        report = self._reports.new(num, at)
        if report is None or num not in running.left:
            return
        self.apply(report)
        wish = self._proposer.judge(num, at, report.value)
        if wish is not None:
            self.ask_for(num, wish, f"at rung {at}")

    # -- stacks that jobs join and leave -------------------------------------------------------------------------------

    def _said(self, running: RunningUnit, number: int, message: Any) -> None:
        self._feeding.said(running, number, message)

    def _release(self, number: int) -> None:
        self._feeding.release(number, self._grace)

    def seated(self, nums: Sequence[int], stack: str) -> None:
        """Record jobs that join a stack."""
        self._expect(nums)
        for job in self._units.of(nums):
            self._progress.joined(job, stack)

    def job_left(self, running: RunningUnit, outcome: TaskOutcome) -> None:
        """Conclude a job that has left a stack that continues."""
        self._settle(running, {outcome.num: outcome}, in_stack=True)

    def job_refused(self, running: RunningUnit, num: int, reason: str) -> None:
        """Run a job alone, because it cannot train in a stack."""
        self._decide([[num]], reason)
        self._progress.stack_split(self._stack([num]), reason, None)
        self.queue([Unit((num,), rungs=self._scheduler.rungs.get(num))], "again")

    # -- ends ----------------------------------------------------------------------------------------------------------

    def _dropped(self, unit: Unit) -> None:
        for job in self._units.of(unit.nums):
            self._progress.dropped(job)

    def _conclude(self, running: RunningUnit, outcome: TaskOutcome, pid: int | None) -> None:
        unit, value = running.unit, outcome.value
        self._progress.left(unit.nums[0])
        if isinstance(value, StackReturn) and value.results is None:
            self._regroup(running, value)
            return
        outcomes = outcomes_of(unit, running.left, outcome, self._policy.timeout)
        staying = self._interrupted_for_others(running, outcome, outcomes)
        rest = replace(self._scheduler.rest(running), nums=tuple(staying))
        self._settle(running, outcomes, staying, in_stack=isinstance(value, StackReturn))
        if staying:
            self.queue([rest], "divided")

    def _settle(
        self,
        running: RunningUnit,
        outcomes: Mapping[int, TaskOutcome],
        staying: Sequence[int] = (),
        *,
        in_stack: bool,
    ) -> None:
        """Conclude jobs that have left a unit, except those that stay together."""
        unit = running.unit
        again: list[int] = []
        if in_stack and running.attempt <= self._policy.retries:
            again = [num for num, own in outcomes.items() if own.state == "failed"]
        failed = [num for num, own in outcomes.items() if num not in again and own.state in FAILED]
        if failed and self._policy.fail_fast:  # before a slot is free
            who = f"#{failed[0]}" if in_stack else self._units.name(unit)
            self.stop(f"stopped because {who} failed", self._policy.grace)
        # Before the ends of the others: a stack of which some are done goes on with the rest.
        self._decide([[num] for num in again], "retried after it failed in a stack")
        self._decide([staying] if staying and not unit.fed else [], "continues without a job that ended")
        for num in again:
            self._progress.again(self._units.jobs[num], outcomes[num].error)
            self.queue([Unit((num,), attempts=running.attempt, rungs=self._scheduler.rungs.get(num))], "again")
        ends = {num: own for num, own in outcomes.items() if num not in again and num not in staying}
        self._end(unit, ends, dict(running.wishes))

    def _interrupted_for_others(
        self, running: RunningUnit, outcome: TaskOutcome, outcomes: Mapping[int, TaskOutcome]
    ) -> list[int]:
        """Return the jobs that ended because another job of their stack was asked to end, or because their slot is
        taken away."""
        if not (running.wishes or outcome.moved) or self._scheduler.stopping:
            return []
        return [num for num, own in outcomes.items() if own.state == "interrupted" and num not in running.wishes]

    def _end(self, unit: Unit, outcomes: Mapping[int, TaskOutcome], wishes: Mapping[int, Wish]) -> None:
        """Record together how jobs ended (finally or paused), or that they have not started and wait."""
        events: dict[int, Ended | Paused] = {}
        for num, outcome in outcomes.items():
            if outcome.state == "interrupted" and not outcome.attempts and num not in wishes:
                self.queue([unit], "again")  # nothing is queued any more
                self._progress.dropped(self._units.jobs[num])
            else:
                event = event_of(num, outcome, len(unit.nums), wishes.get(num))
                events[num] = of_pruned(event, self._reports.last)
        if events:
            self.apply(*events.values())
        for num, event in events.items():
            job, outcome = self._units.jobs[num], outcomes[num]
            if isinstance(event, Paused):
                self._tracking.paused(job)
                self._progress.paused(job)
                continue
            if isinstance(outcome.value, JobDone):
                self.results[num] = outcome.value
            if event.state == "pruned":
                self._pruned(num)
                continue
            self._tracking.ended(job, event.objective if event.state == "done" else None)
            log = job.directory / "output.log" if event.width == 1 else None
            newest = newest_checkpoint(job) if event.state == "stopped" and self._units.resumes else None
            self._progress.ended(job, event.state, outcome, log, width=event.width, checkpoint=newest)

    def _pruned(self, num: int) -> None:
        """Perform the actions after the end of a pruned job."""
        job, (at, value) = self._units.jobs[num], self._reports.last.get(num, (0, None))
        remove_regular(job.directory)
        self._tracking.pruned(job, at)
        self._progress.pruned(job, at, value)

    def _regroup(self, running: RunningUnit, found: StackReturn) -> None:
        """Let the jobs of a stack that must be divided continue in other groups, from their checkpoints."""
        unit, nums = running.unit, list(running.left)
        grouped = [[unit.nums[index] for index in group if unit.nums[index] in nums] for group in found.groups]
        known = {num for group in grouped for num in group}
        groups = [*filter(None, grouped), *([num] for num in nums if num not in known)]
        self._decide(groups, found.reason)
        if found.groups:
            self._progress.stack_divided(self._stack(nums), [self._stack(group) for group in groups], found.reason)
        else:
            self._progress.stack_split(self._stack(nums), found.reason, found.traceback)
        rest = replace(self._scheduler.rest(running), attempts=0, slots=1, expected=None, alone_on=())
        self.queue([replace(rest, nums=tuple(group)) for group in groups], "again")
