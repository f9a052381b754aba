"""Tasks of units: what a worker is given to run a job or a stack, and what it says of each job at the end."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.types import HydraContext

from trainyard.sweep import worker_tasks
from trainyard.sweep.clones import start_of
from trainyard.sweep.events import END_OF_WISH, Ended, JobState, Paused, Unit, Wish
from trainyard.sweep.executor.task import Task, TaskOutcome, TaskState
from trainyard.sweep.manifest import Entry, Manifest
from trainyard.sweep.plan import Job, Stack, SweepPlan, spans
from trainyard.sweep.stacks import StackPlanner
from trainyard.sweep.sweepable import Sweepable
from trainyard.track.sweep_position import Rungs, SweepPosition

STACKS = "stacks"  # folder of the output of stacks


def preloaded(application: Sweepable, fuse: int | str) -> list[str]:
    """Return what is imported once, in the process that workers are forked from.

    Args:
        application: the jobs' application.
        fuse: the setting: whether there are stacks.
    """
    stacked = application.fuse.PRELOAD if application.fuse is not None and fuse != "off" else ()
    return [*application.preload, *stacked, worker_tasks.__name__]


class UnitTasks:
    """Makes the tasks of units, when they start: until then a job is no more than its overrides.

    Args:
        context: Hydra's context.
        application: the jobs' application.
        stacks: prepares a stack for a worker.
        manifest: knows how each job trains.
        directory: the sweep's directory.

    Attributes:
        jobs: all jobs, by number.
        begun: the numbers of jobs that have a state to go on from.
        plan: the plan of all jobs.
        parent: the id of the sweep's own run in MLflow.
        experiment: the MLflow experiment of the sweep's runs, if it has one of its own.
    """

    def __init__(
        self,
        context: HydraContext,
        application: Sweepable,
        stacks: StackPlanner,
        manifest: Manifest,
        directory: Path,
    ) -> None:
        self.jobs: dict[int, Job] = {}
        self.begun: set[int] = set()
        self.plan: SweepPlan | None = None
        self.parent: str | None = None
        self.experiment: str | None = None
        self._context = context
        self._application = application
        self._stacks = stacks
        self._manifest = manifest
        self._directory = directory

    @property
    def resumes(self) -> bool:
        """Whether jobs go on from their checkpoints."""
        return self._application.resumes

    def of(self, nums: Iterable[int]) -> list[Job]:
        """Return jobs by their numbers."""
        return [self.jobs[num] for num in nums]

    def stacks_of(self, nums: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the jobs among these that train as one program from here on, as far as widths are known."""
        if len(nums) < 2:
            return []
        return [tuple(job.num for job in stack.jobs) for stack in self._stacks.known(self.of(nums)).stacks]

    def name(self, unit: Unit) -> str:
        """Return the name of a unit in messages."""
        return spans(unit.nums)

    def task(self, unit: Unit) -> Task:
        """Return the task of a unit that starts now."""
        jobs = self.of(unit.nums)
        resumes = [self._application.resumes and job.num in self.begun for job in jobs]
        self.begun.update(unit.nums)
        for job in jobs:
            job.directory.mkdir(parents=True, exist_ok=True)
        positions = [self._position(job, unit, lane) for lane, job in enumerate(jobs)]
        decision = self._manifest.entries[jobs[0].num].decision
        assert decision is not None, "recorded before the jobs are run"
        name = self.name(unit)
        if len(jobs) == 1:
            config = jobs[0].config
            if (origin := jobs[0].origin) is not None:
                config.resume = start_of(jobs[0])
                config.resume_override = [*(config.resume_override or ()), *origin.keys]
            elif resumes[0]:
                config.resume = True
            work = worker_tasks.JobWork(self._context, self._application, config, Singleton.get_state(), positions[0])
            log = jobs[0].directory / "output.log"
            return Task(
                jobs[0].num,
                worker_tasks.run_one,
                work,
                log=log,
                name=name,
                slots=unit.slots,
                threads=decision.threads,
                folders=folders_of(jobs),
            )
        together = self._stacks.work(jobs, positions)
        for own, resuming in zip(together.jobs, resumes, strict=True):
            if resuming:
                own.values["resume"] = True
        log = self._directory / STACKS / f"{jobs[0].num}-{jobs[-1].num}.log"
        return Task(
            jobs[0].num,
            worker_tasks.run_stack,
            together,
            log=log,
            name=name,
            threads=decision.threads,
            folders=folders_of(jobs),
        )

    def _position(self, job: Job, unit: Unit, lane: int) -> SweepPosition:
        assert self.plan is not None
        stacked = len(unit.nums) > 1
        return SweepPosition(
            self.parent,
            tuple(self.plan.keys),
            self.plan.name(job),
            experiment=self.experiment,
            stack=spans(unit.nums) if stacked else None,
            lane=lane if stacked else None,
            rungs=unit.rungs,
        )


def folders_of(jobs: Iterable[Job]) -> tuple[Path, ...]:
    """Return the folders that jobs read and write."""
    found = [path for job in jobs for path in (job.directory, *([] if job.work_dir is None else [Path(job.work_dir)]))]
    return tuple(dict.fromkeys(path.absolute() for path in found))


def outcomes_of(unit: Unit, outcome: TaskOutcome, timeout: float | None) -> dict[int, TaskOutcome]:
    """Return the outcome of each job of a unit, as if it had run alone.

    Args:
        unit: the unit.
        outcome: that of its task.
        timeout: the seconds after which it was asked to end.
    """
    results = getattr(outcome.value, "results", None)
    if results is None:
        return {num: replace(outcome, num=num) for num in unit.nums}
    found = {}
    for num, result in zip(unit.nums, results, strict=True):
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
    """Return the event of a job's end.

    Args:
        num: its number.
        outcome: its outcome.
        width: the number of jobs of its unit.
        wish: what it was asked to do.
    """
    state, asked = outcome.state, outcome.state in ("interrupted", "lost")
    if state == "paused" or (wish == "pause" and asked):
        return Paused(num, outcome.seconds, width)
    value = outcome.value.return_value if isinstance(outcome.value, worker_tasks.JobDone) else None
    ended: JobState = END_OF_WISH[wish] if wish is not None and asked else state
    return Ended(num, ended, outcome.seconds, value, None if ended == "pruned" else outcome.error, width)


def units_of(
    jobs: Sequence[Job], stacks: Sequence[Stack], entries: Mapping[int, Entry], rungs: Mapping[int, Rungs | None]
) -> list[Unit]:
    """Return the units of jobs that are to run, in the order in which those of unknown duration start.

    Args:
        jobs: the jobs.
        stacks: the stacks among them. They come first, since they take longer than jobs.
        entries: the manifest's entries, which know what a job took before.
        rungs: where a job reports.
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
        units.append(Unit(nums, group[0].slots, expected=expected, rungs=rungs.get(nums[0])))
    return units
