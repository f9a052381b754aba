"""Choice of stacks: jobs of a plan that train as one program, as recorded or by kind, at the width that a probe has
found."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from hydra.core.singleton import Singleton
from hydra.types import HydraContext

from trainyard.checks import integer
from trainyard.errors import ConfigError, TrainyardError
from trainyard.sweep import decisions, kinds, worker_tasks
from trainyard.sweep.decisions import PROMISE, Decision, KnownFit
from trainyard.sweep.executor.base import Executor
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.task import Task, TaskOutcome
from trainyard.sweep.plan import Job, Stack, plain_configs, spans
from trainyard.sweep.sweepable import Sweepable
from trainyard.track.sweep_position import SweepPosition


@dataclass(frozen=True)
class Probe:
    """Measurement of the best width for the jobs of a kind.

    Attributes:
        key: the key of the kind.
        jobs: the jobs.
        task: the measurement.
    """

    key: str
    jobs: Sequence[Job]
    task: Task


@dataclass(frozen=True)
class Stacking:
    """Distribution of jobs to stacks.

    Attributes:
        stacks: the stacks, in the order of their first jobs.
        alone: the reasons why other jobs are in no stack, by number.
        followed: the numbers of the jobs that train together as recorded.
        seconds: the slot times, by number, of jobs that a probe has measured.
    """

    stacks: list[Stack]
    alone: dict[int, str]
    followed: set[int] = field(default_factory=set)
    seconds: dict[int, float] = field(default_factory=dict)


class StackPlanner:
    """Puts the jobs of a sweep into stacks, if their application can train several as one program.

    Args:
        context: Hydra's context.
        application: the jobs' application.
        setting: `auto` (the fastest width), `off`, or the width.
        executor: the executor on whose slots widths are probed.

    Raises:
        ConfigError: the width is invalid.
    """

    def __init__(
        self,
        context: HydraContext,
        application: Sweepable,
        setting: int | Literal["auto", "off"],
        executor: Executor,
    ) -> None:
        self._context = context
        self._application = application
        self._executor = executor
        self._fuse = application.fuse
        self._width = setting if isinstance(setting, int) else None
        if self._width is not None:
            integer("fuse", setting, at_least=1, other="auto or off")
        if self._width is not None and self._fuse is None:
            raise ConfigError("fuse", setting, "auto or off", hint="This application cannot stack jobs.")
        self.active = self._fuse is not None and setting != "off" and self._width != 1
        self._fits: dict[str, KnownFit] = {}  # by kind
        self._kind_of: dict[int, str | None] = {}

    @property
    def has_lanes(self) -> bool:
        """Whether jobs can join a stack while it trains."""
        return self.active and bool(getattr(self._fuse, "LANES", False))

    def kind(self, job: Job) -> str | None:
        """Return the kind of a job; jobs of the same kind can share a stack. None if the job cannot be stacked."""
        if job.num not in self._kind_of:
            fit = self.active and not _unstackable([job])
            self._kind_of[job.num] = _key(self._kinds([_compared(job)])[0]) if fit else None
        return self._kind_of[job.num]

    def difference(self, job: Job, other: Job) -> str:
        """Return the differences because of which two jobs cannot share a stack; empty if there are none."""
        if not self.active or _unstackable([job, other]):
            return ""
        found = self._kinds([_compared(job), _compared(other)])
        return "" if len(found) < 2 else kinds.difference(*found)

    def forget(self, job: Job) -> None:
        """Forget the kind of a job whose config has changed."""
        self._kind_of.pop(job.num, None)

    @property
    def fits(self) -> dict[str, KnownFit]:
        """Fits to record, by kind: those that were measured because no width was given."""
        return self._fits if self._width is None else {}

    def plan(
        self,
        jobs: Sequence[Job],
        recorded: Mapping[int, Decision],
        fits: Mapping[str, KnownFit],
    ) -> Stacking:
        """Put these jobs into stacks as recorded, and others by kind. Jobs of kinds without a known fit run one by one.

        Args:
            jobs: the jobs to run, in the order of their numbers, with their values.
            recorded: the recorded decisions on jobs. Decisions on jobs that can no longer be a stack are not followed.
            fits: the recorded fits.
        """
        self._recall(fits)
        kept = self._kept(jobs, recorded)
        chosen = self.known([job for job in jobs if job.num not in kept.followed])
        stacks = sorted([*kept.stacks, *chosen.stacks], key=lambda stack: stack.jobs[0].num)
        return Stacking(stacks, kept.alone | chosen.alone, kept.followed, chosen.seconds)

    def probes(
        self, jobs: Sequence[Job], recorded: Mapping[int, Decision], fits: Mapping[str, KnownFit]
    ) -> list[Probe]:
        """Return the probes of the kinds whose fit `plan` needs and does not know.

        Args:
            jobs, recorded, fits: as for `plan`.
        """
        self._recall(fits)
        if not self.active or self._fuse is None:
            return []
        kept = self._kept(jobs, recorded)
        several, _ = self._grouped([job for job in jobs if job.num not in kept.followed])
        found: list[Probe] = []
        for key, members in several:
            if self._knows(key, len(members)):
                continue
            limit = min(len(members), self._width or self._fuse.widest(self._executor.slots[0].device))
            work = replace(self.work(members[:limit]), of=len(members))
            name = f"the probe of {Stack(tuple(members))}"
            found.append(Probe(key, members, Task(len(found) + 1, worker_tasks.probe_stack, work, name=name)))
        return found

    def judge(self, probes: Sequence[Probe], outcomes: Sequence[TaskOutcome]) -> None:
        """Learn the fits of kinds from the outcomes of their probes.

        Raises:
            TrainyardError: jobs cannot be stacked although a width was given.
        """
        for probe, outcome in zip(probes, outcomes, strict=True):
            self._fits[probe.key] = self._judged(probe.jobs, outcome)

    def _recall(self, fits: Mapping[str, KnownFit]) -> None:
        if self._width is None:
            self._fits = {**fits, **self._fits}

    def _kept(self, jobs: Sequence[Job], recorded: Mapping[int, Decision]) -> Stacking:
        """Return the tasks of these jobs that are followed as recorded."""
        numbered = {job.num: job for job in jobs}
        kept = Stacking([], {})
        for nums in decisions.tasks(numbered, recorded):
            members, note = [numbered[num] for num in nums], recorded[nums[0]].note
            if len(members) == 1 and not recorded[nums[0]].width:
                kept.alone.update({nums[0]: note} if note else {})
            elif self._are_stackable(members):
                kept.stacks.append(Stack(tuple(members), f"{note}, as recorded" if note else "as recorded"))
            else:
                continue
            kept.followed.update(nums)
        return kept

    def _are_stackable(self, jobs: Sequence[Job]) -> bool:
        """Return whether jobs that were a stack can still be one."""
        if self._fuse is None or _unstackable(jobs):
            return False
        return len(self._kinds([_compared(job) for job in jobs])) == 1

    def _kinds(self, values: Sequence[kinds.Values]) -> list[kinds.Kind]:
        assert self._fuse is not None
        return kinds.kinds(values, self._fuse.ALLOWED, self._fuse.NOT_COMPARED, self._fuse.FIXED_WITH)

    def _grouped(self, jobs: Sequence[Job]) -> tuple[list[tuple[str, list[Job]]], dict[int, str]]:
        """Return the groups of jobs that can share a stack, with their keys, and why other jobs run alone, by
        number."""
        alone = _unstackable(jobs)
        fit = [job for job in jobs if job.num not in alone]
        values = [_compared(job) for job in fit]
        found_kinds = self._kinds(values)
        found = kinds.reasons(found_kinds, [job.num for job in fit], [job.choices for job in fit])
        alone |= {fit[index].num: reason for index, reason in found.items()}
        groups = [kind for kind in found_kinds if len(kind.members) > 1]
        return [(_key(kind), [fit[index] for index in kind.members]) for kind in groups], alone

    def known(self, jobs: Sequence[Job]) -> Stacking:
        """Put jobs into stacks by kind if the width of their kind is known."""
        if not self.active or self._fuse is None:
            return Stacking([], {})
        several, alone = self._grouped(jobs)
        stacks = []
        seconds: dict[int, float] = {}
        for key, members in several:
            known = self._fits.get(key)
            if known is None and self._width is not None:
                known = KnownFit(self._width, "", "", len(members))
            if known is None:
                alone |= {job.num: "the best stack width has not been measured" for job in members}
                continue
            if known.seconds is not None:
                seconds |= dict.fromkeys((job.num for job in members), known.seconds)
            if known.width < 2:
                alone |= {job.num: known.reason for job in members}
                continue
            slots = math.ceil(len(self._executor.slots) * len(members) / len(jobs))
            for chunk in chunks(members, known.width, slots, exactly=self._width is not None):
                if len(chunk) > 1:
                    stacks.append(Stack(tuple(chunk), known.note))
                else:
                    alone[chunk[0].num] = f"left over from stacks of {known.width}"
        return Stacking(stacks, alone, seconds=seconds)

    def _knows(self, key: str, count: int) -> bool:
        known = self._fits.get(key)
        return known is not None and (known.tried >= count or known.width < known.tried)

    def _judged(self, jobs: Sequence[Job], outcome: TaskOutcome) -> KnownFit:
        """Return the fit that a probe found.

        Raises:
            TrainyardError: these jobs cannot be stacked although a width was given.
        """
        if outcome.state == "done":
            found = outcome.value
            fit = KnownFit(found.width, found.reason or "", found.note, len(jobs), found.seconds)
        else:
            what = "took too long" if outcome.state == "timeout" else f"ended with: {outcome.error}"
            fit = KnownFit(1, f"the probe {what}", "", len(jobs))
        if self._width is None:
            return fit
        if fit.width < 2 and not fit.note:  # with a note, a stack is possible but not faster
            raise TrainyardError(
                f"None of these jobs was started. hydra.launcher.fuse={self._width}: {Stack(tuple(jobs))} cannot be "
                f"stacked: {fit.reason.rstrip('.')}. With hydra.launcher.fuse=auto, these jobs run one by one."
            )
        return replace(fit, width=self._width)

    def work(self, jobs: Sequence[Job], positions: Sequence[SweepPosition] = ()) -> worker_tasks.StackWork:
        """Return the data that a worker needs for these jobs."""
        values = plain_configs(jobs)
        stacked = [worker_tasks.StackedJob(own, job.directory) for own, job in zip(values, jobs, strict=True)]
        return worker_tasks.StackWork(
            self._context, self._application, jobs[0].config, Singleton.get_state(), stacked, positions
        )


def chunks(jobs: Sequence[Job], width: int, slots: int, *, exactly: bool = False) -> Iterator[Sequence[Job]]:
    """Yield jobs of a kind in stacks, for a number of slots.

    Args:
        jobs: the jobs, in the order of their numbers.
        width: the maximum width of a stack.
        slots: the number of slots; all are used if there are enough jobs for stacks of at least two.
        exactly: make stacks of the maximum width, regardless of the slots.
    """
    total = len(jobs)
    if exactly:
        yield from (jobs[first : first + width] for first in range(0, total, width))
        return
    count = max(math.ceil(total / width), min(slots, total // 2))
    bounds = [total * number // count for number in range(count + 1)]
    yield from (jobs[first:last] for first, last in pairwise(bounds))


def decide(
    jobs: Sequence[Job], stacking: Stacking, recorded: Mapping[int, Decision], slot: Slot
) -> tuple[list[Decision], list[str]]:
    """Return the decisions on jobs that are not recorded yet, and a line for each reason not to follow recorded ones.

    Args:
        jobs: the jobs to run.
        stacking: their distribution to stacks.
        recorded: the recorded decisions on jobs.
        slot: a slot of this machine.
    """
    tasks: list[tuple[Sequence[Job], str]] = [(stack.jobs, stack.note) for stack in stacking.stacks]
    stacked = {job.num for stack in stacking.stacks for job in stack.jobs}
    tasks += [((job,), stacking.alone.get(job.num, "")) for job in jobs if job.num not in stacked]
    decided: list[Decision] = []
    refused: dict[str, list[int]] = {}
    for members, note in tasks:
        nums = [job.num for job in members]
        decision, why = Decision.here(nums, slot, members[0].slots, note), ""
        if nums[0] in stacking.followed:
            decision, why = recorded[nums[0]].followed(decision, decisions.room(slot))
        elif any(num in recorded for num in nums):
            why = "the jobs can no longer be one stack"
        if why:
            refused.setdefault(why, []).extend(nums)
        if recorded.get(nums[0]) != decision:
            decided.append(decision)
    lines = [f"{spans(sorted(nums))} cannot train as recorded: {why} ({PROMISE})." for why, nums in refused.items()]
    return decided, lines


def _key(kind: kinds.Kind) -> str:
    return hashlib.sha256(kind.key.encode()).hexdigest()[:16]


def _unstackable(jobs: Sequence[Job]) -> dict[int, str]:
    """Return the jobs that cannot be stacked, by number, each with the reason."""
    found = {job.num: "hydra.job.chdir=true" for job in jobs if job.chdir}
    found |= {job.num: f"a clone of #{job.origin.job}" for job in jobs if job.origin is not None}
    return found | {job.num: reason for job in jobs if (reason := _by_strategy(job))}


def _by_strategy(job: Job) -> str:
    """Return why a job that trains or could train on several devices runs alone; empty for other jobs."""
    node = (job.values or {}).get("strategy")
    if job.slots < 2 and not (isinstance(node, Mapping) and "launcher" in node):
        return ""
    option = job.config.hydra.runtime.choices.get("strategy")
    strategy = f"strategy={option}" if option is not None else "the strategy" if node else "the job"
    return f"{strategy} trains on several devices" if job.slots > 1 else f"{strategy} trains one job at a time"


def _compared(job: Job) -> dict[str, Any]:
    """Return the part of a job's config that decides which jobs may share a process with it."""
    assert job.values is not None
    return {**job.values, "hydra": job.process["compared"]}
