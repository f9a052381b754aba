"""Sweep, from the overrides of its jobs to its ranking: compose, check, plan, run, rank."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from trainyard.config.explain import explain
from trainyard.errors import ConfigError, TrainyardError
from trainyard.quoting import shell_override
from trainyard.sweep.application import StartedAs
from trainyard.sweep.compose.composer import Composer, SweepLoader, rare_collections
from trainyard.sweep.conclude import conclude, warm_up
from trainyard.sweep.directories import collisions
from trainyard.sweep.errors import InterruptedSweepError, SweepFailedError
from trainyard.sweep.executor.local import LocalExecutor
from trainyard.sweep.executor.slots import capacity, find_slots
from trainyard.sweep.executor.task import TaskOutcome
from trainyard.sweep.job_configs import JobConfigs
from trainyard.sweep.manifest import Entry, Manifest
from trainyard.sweep.plan import Job, SweepPlan, varying
from trainyard.sweep.scheduler import Scheduler
from trainyard.sweep.settings import SweepSettings
from trainyard.sweep.stacks import StackPlanner, decide
from trainyard.sweep.sweepable import as_sweepable
from trainyard.sweep.tracking import SweepTracking
from trainyard.sweep.trial import Trials

WORKER_TASKS = "trainyard.sweep.worker_tasks"  # imported once, in the process that workers are forked from
MULTIRUN = "multirun.yaml"  # the command; Hydra's basic sweeper writes it too


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
        self._manifest = Manifest.open(self.directory)
        threads = settings.threads_per_job
        if threads != "auto" and self._manifest.decisions:  # continued, perhaps where there are fewer cores
            threads = min(threads, len(os.sched_getaffinity(0)))
        try:
            self._slots = find_slots(settings.jobs_per_gpu, threads, settings.max_jobs)
            self._executor = LocalExecutor(
                self._slots,
                retries=settings.retries,
                timeout=settings.timeout,
                fail_fast=settings.fail_fast,
                grace=settings.grace,
                preload=self._preload(),
            )
            self._trials = Trials(self.application, self._executor)
            self._stacks = StackPlanner(context, self.application, settings.fuse, self._executor)
        except ConfigError as error:
            raise error.under("hydra.launcher") from None
        room = capacity(self._slots)
        self._configs = JobConfigs(composer, self.application, config, self.directory, room, settings.max_jobs)
        self._plan: SweepPlan | None = None  # the plan of all jobs so far
        self._tracking: SweepTracking | None = None
        self._open = ExitStack()
        self._open.callback(self._executor.close)

    def launch(self, overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run the jobs that are not done yet.

        Args:
            overrides: the overrides of each job.
            first: the number of the first job.

        Returns:
            For Hydra's sweepers: in order, each job's return value, or the error that ended it.

        Raises:
            TrainyardError: a config is wrong (none of these jobs has started then), or the sweep was interrupted.
            SweepFailedError: with `fail_fast`, a job of an earlier launch has failed.
        """
        before = self._plan.jobs if self._plan is not None else ()
        manifest, settings = self._manifest, self.settings
        if settings.fail_fast and any(manifest.entries[job.num].state != "done" for job in before):
            raise SweepFailedError(manifest)
        setup_globals()
        self._executor.start()  # starts while this process composes
        with rare_collections():
            jobs = self._checked(overrides, first)
        entries = self._entries(jobs)
        left = [job for job in jobs if entries[job.num].state != "done"]
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
        if settings.dry_run:
            print(plan)
            return []
        if self._plan is None:
            self._begin(jobs)
        for job in jobs:
            manifest.define(job.num, job.overrides, job.subdir)
        manifest.measured(self._stacks.fits)
        manifest.decide(decided)
        if self._plan is None:
            OmegaConf.save(self.config, self.directory / MULTIRUN)
        plan = replace(plan, entries=manifest.entries)
        print(plan, flush=True)
        self._plan = plan if self._plan is None else self._plan.followed_by(plan)
        if self._tracking is None:
            self._tracking = SweepTracking(
                self.directory, jobs[0].config if self.application.resumes else None, self._plan
            )
        else:
            self._tracking.extend(self._plan)
        threading.Thread(target=warm_up, daemon=True).start()
        try:
            outcomes = Scheduler(
                plan, manifest, self._tracking, self._executor, self.context, self.application, self._stacks
            ).run()
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
        if self._executor.signum is not None:
            self.close()
            raise InterruptedSweepError(
                "Interrupted. To finish what is left: the same command with "
                + shell_override("hydra.sweep.dir", self.directory),
                self._executor.signum,
            )
        return [self._returned(job, outcomes.get(job.num)) for job in jobs]

    def close(self) -> None:
        """Rank and report the jobs of all launches, wait for the shipper, and end the process that jobs fork from."""
        with self._open:
            plan, tracking = self._plan, self._tracking
            self._plan = self._tracking = None
            if plan is not None and tracking is not None:
                conclude(plan, tracking, self.application.resumes, self._executor.signum is not None)

    def _preload(self) -> list[str]:
        fuse = self.application.fuse
        stacked = fuse.PRELOAD if fuse is not None and self.settings.fuse != "off" else ()
        return [*self.application.preload, *stacked, WORKER_TASKS]

    def _begin(self, jobs: Sequence[Job]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._open.enter_context(self._manifest.held())
        if self._starts_over(job.num for job in jobs):
            # Hydra repeats a finished sweep on the same command; jobs that can resume are never repeated.
            self._manifest.clear()
        self._manifest.begin(StartedAs.now())

    def _is_done(self, job: Job) -> bool:
        entry = self._manifest.entries.get(job.num)
        return entry is not None and entry.state == "done"

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

    def _checked(self, overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        """Return the jobs of these overrides, composed and checked.

        Raises:
            TrainyardError: all errors in their configs.
        """
        jobs: list[Job] = []
        wrong: list[tuple[Job, Exception]] = []
        numbers = range(first, first + len(overrides))
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
            raise TrainyardError("\n".join([what, *_told(wrong, plan, self.application.resumes)])) from wrong[0][1]
        return jobs

    def _varying(self, jobs: Sequence[Job]) -> list[str]:
        return varying(jobs, OmegaConf.to_container(self.config.hydra.overrides.task))  # type: ignore[arg-type]

    def _returned(self, job: Job, outcome: TaskOutcome | None) -> JobReturn:
        """Return the job's return as Hydra's type; for a job done before, made from the manifest's entry."""
        if outcome is not None and outcome.state == "done":
            return outcome.value  # type: ignore[no-any-return]
        result = JobReturn(overrides=list(filter_overrides(job.overrides)), working_dir=str(job.directory))
        entry = self._manifest.entries[job.num]
        if entry.state == "done":
            result.status, result.return_value = JobStatus.COMPLETED, entry.objective
        else:
            result.status, result.return_value = JobStatus.FAILED, SweepFailedError(self._manifest)
        return result


def _told(wrong: Sequence[tuple[Job, Exception]], plan: SweepPlan, in_own_words: bool) -> list[str]:
    """Return each distinct error with its job count and first job, in Hydra's words or in `explain`'s."""
    jobs: dict[str, list[Job]] = {}
    words: dict[tuple[str, str], str] = {}
    for job, error in wrong:
        # Values, which differ from job to job, are in later lines. Explaining an error takes a tenth of a second.
        start = str(error).partition("\n")[0] or repr(error.__cause__), getattr(error, "override", "")
        if isinstance(error, TrainyardError):
            text = str(error)
        elif start in words:
            text = words[start]
        else:
            text = words[start] = (
                in_own_words and _explained(error, job)
            ) or f"{type(error).__name__}: {error}".strip()
        jobs.setdefault(text, []).append(job)
    return [
        f"{text}\n    in {len(those)} of {len(plan.jobs)} jobs, first in #{those[0].num}: {plan.name(those[0])}"
        for text, those in jobs.items()
    ]


def _explained(error: Exception, job: Job) -> str | None:
    """Return this project's explanation of Hydra's error about a job of ours; None if the error is not Hydra's."""
    hydra: Any = OmegaConf.to_container(job.config.hydra)
    folders = [source["path"] for source in hydra["runtime"]["config_sources"] if source["provider"] == "main"]
    overrides = [*hydra["overrides"]["hydra"], *filter_overrides(job.overrides)]
    with _hydra_left_alone():
        known = explain(error, overrides, folders[0], hydra["job"]["config_name"])
    return None if known is None else str(known)


@contextmanager
def _hydra_left_alone() -> Iterator[None]:
    hydra = GlobalHydra.instance().hydra
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = hydra


__all__: list[Any] = ["InterruptedSweepError", "Sweep", "SweepFailedError"]
