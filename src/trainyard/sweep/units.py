"""Tasks of units: the data that a worker needs to run a job or a stack, and its report on each job at the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.types import HydraContext

from trainyard.files import returned
from trainyard.sweep import stack_tasks, worker_tasks
from trainyard.sweep.clones import start_of
from trainyard.sweep.compose.recipe import Shared
from trainyard.sweep.entry import Entry
from trainyard.sweep.events import END_OF_WISH, Ended, JobState, Paused, Unit, Wish
from trainyard.sweep.executor.task import Common, Task, TaskOutcome, TaskState
from trainyard.sweep.inheritance import begin, settings_of
from trainyard.sweep.job_configs import JobConfigs
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job, Stack, SweepPlan, plain_configs, spans
from trainyard.sweep.stacks import StackPlanner
from trainyard.sweep.sweepable import Sweepable
from trainyard.track.sweep_position import Rungs, SweepPosition

STACKS = "stacks"  # folder of the output of stacks


class UnitTasks:
    """Creates the tasks of units when they start. Until then, only the overrides of a job are stored.

    Args:
        context: Hydra's context.
        application: the jobs' application.
        stacks: the object that prepares a stack for a worker.
        configs: the object that composes the configs of jobs.
        manifest: the manifest, which records how each job trains.
        directory: the directory of the sweep.

    Attributes:
        jobs: all jobs, by number.
        begun: the numbers of jobs that have a state from which they can continue.
        plan: the plan of all jobs.
        parent: the ID of the sweep's run in MLflow.
        experiment: the MLflow experiment of the sweep's runs, if the sweep has a separate one.
        metrics: the metrics that jobs return, by name; empty for their objective only.
    """

    def __init__(
        self,
        context: HydraContext,
        application: Sweepable,
        stacks: StackPlanner,
        configs: JobConfigs,
        manifest: Manifest,
        directory: Path,
    ) -> None:
        self.jobs: dict[int, Job] = {}
        self.begun: set[int] = set()
        self.plan: SweepPlan | None = None
        self.parent: str | None = None
        self.experiment: str | None = None
        self.metrics: tuple[str, ...] = ()
        self._context = context
        self._application = application
        self._stacks = stacks
        self._configs = configs
        self._commons: dict[Shared | None, Common] = {}
        self._manifest = manifest
        self._directory = directory

    @property
    def resumes(self) -> bool:
        """Whether jobs continue from their checkpoints."""
        return self._application.resumes

    def of(self, nums: Iterable[int]) -> list[Job]:
        """Return jobs by their numbers."""
        return [self.jobs[num] for num in nums]

    def stacks_of(self, nums: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the jobs among these that train as one program from now on, as far as widths are known."""
        if len(nums) < 2:
            return []
        return [tuple(job.num for job in stack.jobs) for stack in self._stacks.known(self.of(nums)).stacks]

    def difference(self, job: Job, other: Job) -> str:
        """Return the places whose difference prevents two jobs from sharing a stack; empty if there are none."""
        return self._stacks.difference(job, other)

    def name(self, unit: Unit) -> str:
        """Return the name of a unit in messages."""
        return spans(unit.nums)

    def task(self, unit: Unit) -> Task:
        """Return the task of a unit that starts now."""
        jobs = self.of(unit.nums)
        resumes = [self._application.resumes and job.num in self.begun for job in jobs]
        self.begun.update(unit.nums)
        returned(self._directory, self._manifest.patience)  # else another one would be made in its place
        for job in jobs:
            job.directory.mkdir(parents=True, exist_ok=True)
        decision = self._manifest.entries[jobs[0].num].decision
        assert decision is not None, "recorded before the jobs are run"
        positions = [self._position(job, unit, lane) for lane, job in enumerate(jobs)]
        name = self.name(unit)
        if len(jobs) == 1 and not unit.fed:
            resume, keys = self._beginning(jobs[0], resumes[0])
            config, shared = self._configs.recipe(jobs[0]) or (jobs[0].config, None)
            work = worker_tasks.JobWork(config, positions[0], resume, keys)
            return Task(
                jobs[0].num,
                worker_tasks.run_one,
                work,
                log=jobs[0].directory / "output.log",
                name=name,
                slots=unit.slots,
                threads=decision.threads,
                folders=folders_of(jobs),
                common=self._common(shared),
                importable=shared is not None,
            )
        together = self._stacks.work(jobs, positions)
        for job, own, resuming in zip(jobs, together.jobs, resumes, strict=True):
            own.values.update(self._resumption(job) if resuming else {})
        if unit.fed or decision.width:
            lanes, width = decision.places(unit.nums), decision.all_lanes
            together = replace(together, lanes=lanes, width=width, fed=unit.fed)
        log = self._directory / STACKS / f"{jobs[0].num}-{jobs[-1].num}.log"
        return Task(
            jobs[0].num,
            stack_tasks.run_stack,
            together,
            log=log,
            name=name,
            threads=decision.threads,
            folders=folders_of(jobs),
        )

    def joining(
        self, rungs: Mapping[int, Rungs | None], stack: str
    ) -> tuple[list[worker_tasks.StackedJob], list[SweepPosition]]:
        """Return the data that a running stack receives about jobs that join it.

        Args:
            rungs: the positions at which each job reports, by the number of the job.
            stack: the name of the stack.
        """
        jobs = self.of(rungs)
        given, positions = [], []
        for job, values in zip(jobs, plain_configs(jobs), strict=True):
            if self._application.resumes and job.num in self.begun:
                values.update(self._resumption(job))
            job.directory.mkdir(parents=True, exist_ok=True)
            given.append(worker_tasks.StackedJob(values, job.directory))
            position = self._position(job, Unit((job.num,), rungs=rungs[job.num]), 0)
            positions.append(replace(position, stack=stack))
        self.begun.update(rungs)
        return given, positions

    def _resumption(self, job: Job) -> dict[str, Any]:
        """Return the settings with which a job continues."""
        lineage = self._manifest.entries[job.num].lineage
        return settings_of(job, lineage[-1]) if lineage else {"resume": True}

    def _beginning(self, job: Job, resumes: bool) -> tuple[bool | str, tuple[str, ...]]:
        """Return the state that a job resumes, and the keys at which its config differs from the checkpoint."""
        if job.origin is not None:
            return start_of(job), job.origin.keys
        lineage = self._manifest.entries[job.num].lineage
        if not (resumes and lineage):
            return resumes, ()
        return begin(job, lineage[-1]), lineage[-1].keys

    def _common(self, shared: Shared | None) -> Common:
        """Return the common data of the tasks of jobs that share a composition."""
        if shared not in self._commons:
            singletons = Singleton.get_state()
            self._commons[shared] = Common(worker_tasks.JobCommon(self._context, self._application, singletons, shared))
        return self._commons[shared]

    def _position(self, job: Job, unit: Unit, lane: int) -> SweepPosition:
        assert self.plan is not None
        stacked = len(unit.nums) > 1 or unit.fed
        return SweepPosition(
            self.parent,
            tuple(self.plan.keys),
            self.plan.name(job),
            experiment=self.experiment,
            stack=spans(unit.nums) if stacked else None,
            lane=lane if stacked else None,
            rungs=unit.rungs_of(job.num),
            metrics=self.metrics,
        )


def folders_of(jobs: Iterable[Job]) -> tuple[str | Path, ...]:
    """Return the folders that jobs read and write."""
    return tuple(path for job in jobs for path in (job.directory, job.work_dir) if path is not None)


def outcomes_of(unit: Unit, left: Iterable[int], outcome: TaskOutcome, timeout: float | None) -> dict[int, TaskOutcome]:
    """Return the outcome of each remaining job of a unit, as if it had run alone.

    Args:
        unit: the unit.
        left: the remaining jobs.
        outcome: the outcome of the task.
        timeout: the number of seconds after which the unit was asked to end.
    """
    results = getattr(outcome.value, "results", None)
    if results is None:
        return {num: replace(outcome, num=num) for num in left}
    found = {}
    of = dict(zip(unit.nums, range(len(unit.nums)), strict=True))  # the last of one that has come again
    for num in left:
        result = results[of[num]] if of[num] < len(results) else None
        if result is None:
            found[num] = replace(outcome, num=num, state="interrupted", value=None, error="the job had not started")
            continue
        state: TaskState = result.state
        error = result.error
        value: Any = worker_tasks.JobDone(result.value) if state == "done" else None
        if state == "interrupted":
            error = error or "its stack was interrupted"
            if timeout is not None and outcome.seconds >= timeout:
                state, error = "timeout", f"took longer than {timeout:g} s"
        found[num] = replace(outcome, num=num, state=state, value=value, error=error)
    return found


def event_of(num: int, outcome: TaskOutcome, width: int, wish: Wish | None) -> Ended | Paused:
    """Return the event for the end of a job.

    Args:
        num: the number of the job.
        outcome: the outcome of the job.
        width: the number of jobs in the unit.
        wish: the request that the job received.
    """
    state, asked = outcome.state, outcome.state in ("interrupted", "lost", "paused")  # paused: at its rung, meanwhile
    if (wish == "pause" and asked) or (wish is None and state == "paused"):
        return Paused(num, outcome.seconds, width, by_hand=wish == "pause")
    value = outcome.value.return_value if isinstance(outcome.value, worker_tasks.JobDone) else None
    ended: JobState = END_OF_WISH[wish] if wish is not None and asked else state
    return Ended(num, ended, outcome.seconds, value, None if ended == "pruned" else outcome.error, width)


def units_of(
    jobs: Sequence[Job], stacks: Sequence[Stack], entries: Mapping[int, Entry], rungs: Mapping[int, Rungs | None]
) -> list[Unit]:
    """Return the units of the jobs to run, in the order in which units of unknown duration start.

    Args:
        jobs: the jobs.
        stacks: the stacks among them. They come first, since they take longer than jobs.
        entries: the entries of the manifest, which contain the earlier durations of jobs.
        rungs: the positions at which a job reports.
    """
    known = [entry.cost for job in jobs if (entry := entries[job.num]).cost is not None]
    typical = statistics.median(known) if known else None
    stacked = {job.num for stack in stacks for job in stack.jobs}
    groups = [stack.jobs for stack in stacks] + [(job,) for job in jobs if job.num not in stacked]
    units = []
    for group in groups:
        costs = [entries[job.num].cost or typical for job in group]
        expected = None if None in costs else sum(cost for cost in costs if cost is not None)
        nums = tuple(job.num for job in group)
        own = tuple((num, each) for num in nums if (each := rungs.get(num)) is not None)
        alike = len({rungs.get(num) for num in nums}) == 1
        unit = Unit(nums, group[0].slots, expected=expected)
        units.append(replace(unit, rungs=rungs.get(nums[0])) if alike else replace(unit, own_rungs=own))
    return units
