"""Sweep, from the overrides of its jobs to its ranking: compose, check, plan, run, rank."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from trainyard.errors import ConfigError, TrainyardError
from trainyard.quoting import shell_override
from trainyard.sweep.application import StartedAs
from trainyard.sweep.compose.composer import Composer, SweepLoader, rare_collections
from trainyard.sweep.conclude import conclude, warm_up
from trainyard.sweep.directories import collisions
from trainyard.sweep.errors import InterruptedSweepError, SweepFailedError
from trainyard.sweep.events import Began, Ended, Event, Paused, Proposed, Unit
from trainyard.sweep.executor.local import LocalExecutor
from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.executor.slots import capacity, find_slots
from trainyard.sweep.head import BY_HAND, Head
from trainyard.sweep.job_configs import JobConfigs
from trainyard.sweep.job_errors import told
from trainyard.sweep.manifest import Entry, Manifest
from trainyard.sweep.plan import Job, SweepPlan, varying
from trainyard.sweep.progress import SweepProgress
from trainyard.sweep.proposers import GridProposer, NewJob, Promote, Proposer
from trainyard.sweep.reports import Reports
from trainyard.sweep.scheduler import Scheduler
from trainyard.sweep.settings import SweepSettings
from trainyard.sweep.stacks import StackPlanner, decide
from trainyard.sweep.steering import CommandFolder
from trainyard.sweep.sweepable import as_sweepable
from trainyard.sweep.tracking import MULTIRUN, SweepTracking
from trainyard.sweep.trial import Trials
from trainyard.sweep.units import UnitTasks, units_of
from trainyard.sweep.worker_tasks import JobDone, LazyJobReturn

WORKER_TASKS = "trainyard.sweep.worker_tasks"  # imported once, in the process that workers are forked from


class Sweep:
    """Launches the jobs of a sweeper, batch by batch. `close` ends the sweep, with the ranking of all.

    Args:
        context: Hydra's context.
        function: the task function. It may be a `trainyard.sweep.sweepable.Sweepable`, which supports more features.
        config: the config of the whole sweep.
        settings: the sweep's settings.

    Raises:
        ConfigError: a setting cannot work here.
        TrainyardError: the task function has only a part of that protocol, which would be ignored.
    """

    def __init__(
        self,
        context: HydraContext,
        function: TaskFunction,
        config: DictConfig,
        settings: SweepSettings,
    ) -> None:
        self.context = context
        self.application = as_sweepable(function)
        self.config = config
        self.settings = settings
        self.directory = Path(str(config.hydra.sweep.dir)).absolute()
        loader = context.config_loader
        composer = loader.composer if isinstance(loader, SweepLoader) else Composer(loader, config)
        self._scheduler = Scheduler()
        self._reports = Reports()
        self._manifest = Manifest.open(self.directory, self._replay)
        threads = settings.threads_per_job
        if threads != "auto" and self._manifest.decisions:  # continued, perhaps where there are fewer cores
            threads = min(threads, len(os.sched_getaffinity(0)))
        try:
            self._slots = find_slots(settings.jobs_per_gpu, threads, settings.max_jobs)
            self._policy = Policy(settings.retries, settings.timeout, settings.fail_fast, settings.grace)
            self._executor = LocalExecutor(self._slots, preload=self._preload())
            self._trials = Trials(self.application, self._executor)
            self._stacks = StackPlanner(context, self.application, settings.fuse, self._executor)
        except ConfigError as error:
            raise error.under("hydra.launcher") from None
        room = capacity(self._slots)
        self._configs = JobConfigs(composer, self.application, config, self.directory, room, settings.max_jobs)
        self._units = UnitTasks(context, self.application, self._stacks, self._manifest, self.directory)
        self._proposer: Proposer = GridProposer([])
        self._plan: SweepPlan | None = None  # the plan of all jobs so far
        self._tracking: SweepTracking | None = None
        self._progress: SweepProgress | None = None
        self._interrupted = False
        self._open = ExitStack()
        self._open.callback(self._executor.close)

    def launch(self, overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run the jobs of a batch that are not done yet: the interface of Hydra's sweepers.

        Args:
            overrides: the overrides of each job.
            first: the number of the first job.

        Returns:
            In order, each job's return value, or the error that ended it.

        Raises:
            TrainyardError: a config is wrong (none of these jobs has started then), or the sweep was interrupted.
            SweepFailedError: with `fail_fast`, a job of an earlier launch has failed.
        """
        before = self._plan.jobs if self._plan is not None else ()
        if self.settings.fail_fast and any(self._manifest.entries[job.num].is_left for job in before):
            raise SweepFailedError(self._manifest)
        results = self.run(GridProposer(overrides, first), recorded=False)
        if results is None:
            return []
        return [self._returned(num, results.get(num)) for num in range(first, first + len(overrides))]

    def run(self, proposer: Proposer, *, recorded: bool = True) -> dict[int, JobDone] | None:
        """Run what a proposer proposes, until that is nothing more.

        Args:
            proposer: it is told first what the manifest has.
            recorded: whether the jobs in the manifest belong to the sweep, though they are not proposed again.

        Returns:
            What the jobs that ended now returned, by number; None for a dry run.

        Raises:
            TrainyardError: a config is wrong, or the sweep was interrupted.
        """
        setup_globals()
        self._executor.start()  # starts while this process composes
        self._proposer = proposer
        if type(proposer).told is not Proposer.told:
            Manifest.open(self.directory, proposer.told)
        proposals = [*(self._recorded() if recorded else ()), *proposer.ask(len(self._slots))]
        plan, units = self._admitted([each for each in proposals if isinstance(each, NewJob)])
        if self.settings.dry_run:
            print(plan)
            return None
        self._take_over(plan)
        if self._tracking is None:
            config = plan.jobs[0].config if self.application.resumes else None
            self._tracking = SweepTracking(self.directory, config, self._whole)
        else:
            self._tracking.extend(self._whole)
        self._units.parent, self._units.experiment = self._tracking.parent, self._tracking.experiment
        self._progress = SweepProgress(plan)
        threading.Thread(target=warm_up, daemon=True).start()
        head = Head(
            self._executor,
            self._scheduler,
            self._policy,
            manifest=self._manifest,
            units=self._units,
            tracking=self._tracking,
            progress=self._progress,
            proposer=proposer,
            admit=self._admit,
            reports=self._reports,
            commands=CommandFolder(self.directory),
        )
        try:
            with self._progress:
                head.queue(units)
                head.take_in([each for each in proposals if isinstance(each, Promote)])
                head.run()
        except KeyboardInterrupt:
            shipment = self._tracking.abort()
            self._plan = None  # ended at once: there is nothing to rank
            self.close()
            if str(shipment):
                print(shipment)
            raise
        except BaseException:
            self._plan = None
            self.close()
            raise
        if head.signum is not None:
            self._interrupted = True
            self.close()
            raise InterruptedSweepError(
                "Interrupted. To finish what is left: the same command with "
                + shell_override("hydra.sweep.dir", self.directory),
                head.signum,
            )
        return head.results

    def close(self) -> None:
        """Rank and report the jobs of all launches, wait for the shipper, and end the process that jobs fork from."""
        with self._open:
            plan, tracking = self._plan, self._tracking
            self._plan = self._tracking = None
            if plan is not None and tracking is not None:
                conclude(plan, tracking, self.application.resumes, self._interrupted)

    def _preload(self) -> list[str]:
        fuse = self.application.fuse
        stacked = fuse.PRELOAD if fuse is not None and self.settings.fuse != "off" else ()
        return [*self.application.preload, *stacked, WORKER_TASKS]

    @property
    def _whole(self) -> SweepPlan:
        assert self._plan is not None
        return self._plan

    def _replay(self, event: Event) -> None:
        self._scheduler.handle(event)
        self._reports.told(event)

    def _recorded(self) -> list[NewJob]:
        """Return the recorded jobs: those that have neither ended nor paused are to run, all are ranked."""
        return [
            NewJob(tuple(entry.overrides), num, self._scheduler.rungs.get(num))
            for num, entry in self._manifest.entries.items()
        ]

    def _admit(self, new: Sequence[NewJob]) -> Sequence[Unit]:
        """Take in jobs that are proposed while others run."""
        if not new:
            return []
        plan, units = self._admitted(new)
        self._take_over(plan)
        assert self._tracking is not None
        assert self._progress is not None
        self._tracking.extend(self._whole)
        self._progress.extend(self._whole)
        return units

    def _admitted(self, new: Sequence[NewJob]) -> tuple[SweepPlan, list[Unit]]:
        """Return the plan of new jobs, composed and checked, and the units of those that are to run.

        Nothing is recorded for a dry run.

        Raises:
            TrainyardError: a config is wrong.
        """
        manifest = self._manifest
        free = max([-1, *manifest.entries, *(each.num for each in new if each.num is not None)]) + 1
        numbers = [free + index if each.num is None else each.num for index, each in enumerate(new)]
        before = self._plan.jobs if self._plan is not None else ()
        with rare_collections():
            jobs = self._checked([each.overrides for each in new], numbers)
        entries = self._entries(jobs)
        out = {num for num, entry in entries.items() if not entry.is_left or entry.state == "paused"}
        left = [job for job in jobs if job.num not in out and job.num not in self._scheduler.wished]
        recorded = {job.num: it for job in left if (it := entries[job.num].decision) is not None}
        stacking = self._stacks.plan(
            left, recorded, {} if self._starts_over(job.num for job in jobs) else manifest.fits
        )
        decided, not_followed = decide(left, stacking, recorded, self._slots[0])
        keys = self._varying([*before, *jobs])
        begun = frozenset(job.num for job in left if job.num in recorded and any(job.directory.glob("*")))
        sizes, stacks = self._trials.sizes, stacking.stacks
        plan = SweepPlan(jobs, entries, self._slots, keys, self.directory, stacks, stacking.alone, begun, sizes)
        for line in not_followed:
            print(line, flush=True)
        self._units.begun.update(job.num for job in left if entries[job.num].state != "waiting" or job.num in begun)
        if self.settings.dry_run:
            return plan, []
        if self._plan is None:
            self._begin(jobs)
        self._units.jobs.update({job.num: job for job in jobs})
        rungs = {num: each.rungs for num, each in zip(numbers, new, strict=True)}
        proposed = [(Proposed(job.num, job.overrides, rungs[job.num]), job.subdir) for job in jobs]
        for event in manifest.define_all(proposed):
            self._scheduler.handle(event)
            self._proposer.told(event)
        manifest.measured(self._stacks.fits)
        manifest.decide(decided)
        if self._plan is None:
            OmegaConf.save(self.config, self.directory / MULTIRUN)
        return replace(plan, entries=manifest.entries), units_of(left, stacking.stacks, entries, rungs)

    def _take_over(self, plan: SweepPlan) -> None:
        """Show a plan, and add it to those of before."""
        print(plan, flush=True)
        self._plan = self._units.plan = plan if self._plan is None else self._plan.followed_by(plan)

    def _begin(self, jobs: Sequence[Job]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._open.enter_context(self._manifest.held())
        if self._starts_over(job.num for job in jobs):
            # Hydra repeats a finished sweep on the same command; jobs that can resume are never repeated.
            self._manifest.clear()
            self._scheduler, self._reports = Scheduler(), Reports()
            CommandFolder(self.directory).clear()
        self._manifest.begin(StartedAs.now())
        # What jobs were asked to do when the head before this one was killed has come true.
        wished = self._scheduler.wished.items()
        fulfilled = [Paused(num) if wish == "pause" else Ended(num, "stopped", error=BY_HAND) for num, wish in wished]
        for event in self._manifest.log(Began(), *fulfilled):
            self._scheduler.handle(event)
            self._proposer.told(event)

    def _is_done(self, job: Job) -> bool:
        entry = self._manifest.entries.get(job.num)
        return entry is not None and not entry.is_left

    def _starts_over(self, nums: Iterable[int]) -> bool:
        return self._plan is None and not self.application.resumes and self._manifest.is_done(nums)

    def _entries(self, jobs: Sequence[Job]) -> dict[int, Entry]:
        """Return the manifest's entries of these jobs, before anything is written to it.

        Raises:
            TrainyardError: a number belongs to another job, or the manifest to another application.
        """
        self._manifest.check_application(StartedAs.now())
        if self._starts_over(job.num for job in jobs):
            return {job.num: Entry(list(job.overrides)) for job in jobs}
        for job in jobs:
            self._manifest.check(job.num, job.overrides)
        return {job.num: self._manifest.entry(job.num, job.overrides) for job in jobs}

    def _checked(self, overrides: Sequence[Sequence[str]], numbers: Sequence[int]) -> list[Job]:
        """Return the jobs of these overrides and numbers, composed and checked.

        Raises:
            TrainyardError: all errors in their configs.
        """
        jobs: list[Job] = []
        wrong: list[tuple[Job, Exception]] = []
        known = {} if self._starts_over(numbers) else self._manifest.entries
        subdirs = {num: known[num].subdir for num in numbers if num in known}
        for job, error in self._configs.checked(overrides, numbers, subdirs):
            jobs.append(job)
            if error is not None:
                wrong.append((job, error))
        refused = {job.num for job, _ in wrong}
        before = self._plan.jobs if self._plan is not None else ()
        wrong += collisions([job for job in jobs if job.num not in refused], before)
        wrong += self._trials.errors([job for job in jobs if job.num not in refused and not self._is_done(job)])
        wrong.sort(key=lambda each: each[0].num)
        if wrong:
            plan = SweepPlan(jobs, {}, (), self._varying(jobs), self.directory)
            what = "Nothing was started." if self._plan is None else "None of these jobs was started."
            raise TrainyardError("\n".join([what, *told(wrong, plan, self.application.resumes)])) from wrong[0][1]
        return jobs

    def _varying(self, jobs: Sequence[Job]) -> list[str]:
        return varying(jobs, OmegaConf.to_container(self.config.hydra.overrides.task))  # type: ignore[arg-type]

    def _returned(self, num: int, done: JobDone | None) -> JobReturn:
        """Return the job's return as Hydra's type; for a job done before, made from the manifest's entry."""
        job = self._units.jobs[num]
        if done is not None:
            return LazyJobReturn(partial(getattr, job, "config"), done.return_value, done.working_dir, done.task_name)
        result = JobReturn(overrides=list(filter_overrides(job.overrides)), working_dir=str(job.directory))
        entry = self._manifest.entries[job.num]
        if not entry.is_left:
            result.status, result.return_value = JobStatus.COMPLETED, entry.objective
        else:
            result.status, result.return_value = JobStatus.FAILED, SweepFailedError(self._manifest)
        return result


__all__: list[Any] = ["InterruptedSweepError", "Sweep", "SweepFailedError"]
