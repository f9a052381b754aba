"""Sweep, from the overrides of its jobs to its ranking: compose, check, plan, run, rank."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from trainyard.application import StartedAs
from trainyard.errors import ConfigError
from trainyard.garbage import collect_as_usual
from trainyard.sweep.admission import Admission
from trainyard.sweep.by_hand import BY_HAND
from trainyard.sweep.clones import Clones, recorded_jobs, tell
from trainyard.sweep.compose.composer import Composer, SweepLoader
from trainyard.sweep.conclude import conclude, warm_up_later
from trainyard.sweep.decisions import Decision
from trainyard.sweep.directories import Places
from trainyard.sweep.errors import InterruptedSweepError, SweepFailedError, how_to_continue
from trainyard.sweep.events import Began, Event, Proposed, Unit
from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.head import Head
from trainyard.sweep.inheritance import Inheritance
from trainyard.sweep.job_configs import JobConfigs
from trainyard.sweep.job_returns import returned
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job, SweepPlan
from trainyard.sweep.progress import SweepProgress
from trainyard.sweep.proposers import GridProposer, NewJob, Promote, Proposer
from trainyard.sweep.pruned import fulfilled
from trainyard.sweep.reports import Reports
from trainyard.sweep.scheduler import Scheduler
from trainyard.sweep.settings import SweepSettings
from trainyard.sweep.stacks import StackPlanner, decide
from trainyard.sweep.steering import CommandFolder
from trainyard.sweep.submitted_head import take_over
from trainyard.sweep.sweepable import as_sweepable, preloaded
from trainyard.sweep.tracking import MULTIRUN, SweepTracking, started_tracker
from trainyard.sweep.trial import Trials
from trainyard.sweep.units import UnitTasks, units_of
from trainyard.sweep.varying import VaryingKeys
from trainyard.sweep.worker_tasks import JobDone
from trainyard.track import Tracker


class Sweep:
    """Launches the jobs of a sweeper, batch by batch. `close` ends the sweep, with the ranking of all jobs.

    Args:
        context: Hydra's context.
        function: the task function. It may be a `trainyard.sweep.sweepable.Sweepable`, which supports further features.
        config: the config of the entire sweep.
        settings: the sweep's settings.

    Attributes:
        grid: the overrides of all jobs, in order, if several launches run the jobs of one grid.

    Raises:
        ConfigError: a setting is invalid here.
        TrainyardError: the task function has only a part of the protocol, which would be ignored.
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
        self.grid: Sequence[Sequence[str]] = ()
        self.directory = Path(str(config.hydra.sweep.dir)).absolute()
        settings.check(config)
        loader = context.config_loader
        composer = loader.composer if isinstance(loader, SweepLoader) else Composer(loader, config)
        self._scheduler = Scheduler()
        self._reports = Reports()
        self._manifest = Manifest.open(self.directory, self._replay)
        self._manifest.patience = settings.disk_patience
        try:
            continued = bool(self._manifest.decisions)
            self._slots = settings.slots(continued=continued)
            self._policy = Policy(settings.retries, settings.timeout, settings.fail_fast, settings.grace)
            preload = preloaded(self.application, settings.fuse)
            self._executor = settings.executor(self._slots, self.directory, preload)
            trial_executor = settings.trial_executor(self._executor, preload)
            self._trials = Trials(self.application, trial_executor, self._executor, self._manifest)
            self._stacks = StackPlanner(context, self.application, settings.fuse, self._executor)
        except ConfigError as error:
            raise error.under("hydra.launcher") from None
        limit = ""
        if settings.limits_a_job(self._slots, continued):
            limit = f"hydra.launcher.max_jobs={settings.max_jobs} limits the number."
        if not self._executor.here and not limit:
            limit = f"hydra.launcher.max_slots={len(self._slots)} limits the number."
        if not self._executor.shares_disk:
            limit = (
                "With hydra.launcher.storage, a job can use the slots of one agent only (hydra.launcher.num_gpus or "
                "hydra.launcher.num_cpus). "
                "Jobs on several nodes need a disk that all nodes share."
            )
        self._configs = JobConfigs(
            composer, self.application, config, self.directory, self._executor.room, limit, self._executor.here
        )
        self._places = Places()
        self._clones = Clones(self.application, self._configs, self._manifest, self.directory, self._places)
        self._units = UnitTasks(context, self.application, self._stacks, self._configs, self._manifest, self.directory)
        command: Any = OmegaConf.to_container(config.hydra.overrides.task)
        self._keys = VaryingKeys(command)
        self._admission = Admission(
            self.application, self._configs, self._manifest, self._trials, self._places, self.directory, command
        )
        self._proposer: Proposer = GridProposer([])
        self._plan: SweepPlan | None = None  # the plan of all jobs so far
        self._tracking: SweepTracking | None = None
        self._tracker: Tracker | None = None  # until there is a run to track
        self._progress: SweepProgress | None = None
        self._interrupted = False
        self._open = ExitStack()
        self._open.callback(self._executor.close)

    def launch(self, overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run the jobs of a batch that are not done yet. This is the interface for Hydra's sweepers.

        Args:
            overrides: the overrides of each job.
            first: the number of the first job.

        Returns:
            The return value of each job, or the error that ended the job, in order.

        Raises:
            TrainyardError: a config is invalid (then none of these jobs has started), or the sweep was interrupted.
            SweepFailedError: with `fail_fast`, a job of an earlier launch has failed.
        """
        before = self._plan.jobs if self._plan is not None else ()
        if self.settings.fail_fast and any(self._manifest.entries[job.num].has_failed for job in before):
            raise SweepFailedError(self._manifest)
        results = self.run(GridProposer(overrides, first), recorded=False)
        if results is None:
            return []
        nums = range(first, first + len(overrides))
        return [returned(self._units.jobs[num], results.get(num), self._manifest) for num in nums]

    def run(self, proposer: Proposer, *, recorded: bool = True) -> dict[int, JobDone] | None:
        """Run the jobs of a proposer until it proposes no more.

        Args:
            proposer: the proposer, which first receives the events in the manifest.
            recorded: whether the jobs in the manifest belong to the sweep, although they are not proposed again.

        Returns:
            The results of the jobs that ended now, by number; None for a dry run.

        Raises:
            TrainyardError: a config is invalid, the directory contains another sweep, or the sweep was interrupted.
        """
        setup_globals()
        self._executor.start()  # starts while this process composes
        self._proposer = proposer
        if proposer.goals is not None:
            self._units.metrics = proposer.goals.metrics
            self._trials.metrics = proposer.goals.keys
        if type(proposer).told is not Proposer.told:
            Manifest.open(self.directory, partial(tell, proposer))
        self._manifest.check_proposer(proposer.identity)
        self._manifest.check_application(StartedAs.now())
        self._admission.proposer, self._admission.from_proposer = proposer, recorded
        self.grid = self.grid or proposer.listed
        if self._plan is None and self.grid and not self._admission.starts_over(range(len(self.grid))):
            self._manifest.check_grid(self.grid)
        known = recorded_jobs(self._manifest, self._scheduler, clones_alone=not recorded) if self._plan is None else []
        # Where recorded jobs are left to run the head asks, when it knows how many slots they leave.
        left = any(each.is_left and each.state != "paused" for each in self._manifest.entries.values())
        asked = [] if recorded and left else proposer.ask(len(self._slots))
        proposals = [*known, *asked] if recorded else [*asked, *known]
        new = [each for each in proposals if isinstance(each, NewJob)]
        plan, units = self._admitted(new, at_rest=True, listed=proposer.listed)
        print(plan, flush=True)
        if self.settings.dry_run:
            return None
        self._take_over(plan)
        if self._tracking is None:
            config = plan.jobs[0].config if self.application.resumes else None
            tracker, self._tracker = self._tracker, None
            self._tracking = SweepTracking(self.directory, config, self._whole, proposer.goals, tracker)
            self._tracking.write_plan(self._whole)
        self._tracking.count(len(self._whole.jobs))
        self._units.parent, self._units.experiment = self._tracking.parent, self._tracking.experiment
        self._progress = SweepProgress(self._whole, plan.jobs, proposer.goals)
        warm_up_later(proposer)
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
            clone=lambda num, changes: self._clones.make(self._units.jobs[num], changes),
            adopt=self._adopted,
            reports=self._reports,
            commands=CommandFolder(self.directory),
            planner=self._stacks,
            inherit=Inheritance(self.application, self._configs).make,
            replace_job=self._replaced,
        )
        collect_as_usual()
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
                f"Interrupted. To finish the sweep, {how_to_continue(self._manifest)}.", head.signum
            )
        return head.results

    def close(self) -> None:
        """Rank and report the jobs of all launches, wait for the shipper, and end the process from which jobs are
        forked."""
        with self._open:
            if self._tracker is not None:
                self._tracker.finish()  # it has no run
            plan, tracking = self._plan, self._tracking
            self._plan = self._tracking = None
            if plan is not None and tracking is not None:
                conclude(plan, tracking, self.application.resumes, self._proposer, self._interrupted)

    def raise_if_failed(self) -> None:
        """Raise an error if a job failed, so that the command ends with an error status.

        Raises:
            SweepFailedError: a job did not finish.
        """
        if not self.settings.dry_run and any(entry.has_failed for entry in self._manifest.entries.values()):
            raise SweepFailedError(self._manifest)

    @property
    def _whole(self) -> SweepPlan:
        assert self._plan is not None
        return self._plan

    def _replay(self, event: Event) -> None:
        self._scheduler.handle(event)
        self._reports.told(event)

    def _admit(self, new: Sequence[NewJob]) -> Sequence[Unit]:
        """Admit jobs that are proposed while others run; the time depends only on the number of the new jobs."""
        if not new:
            return []
        plan, units = self._admitted(new, at_rest=False)
        self._take_over(plan)
        assert self._tracking is not None
        assert self._progress is not None
        self._tracking.count(len(self._whole.jobs))
        self._progress.extend(plan.jobs)
        return units

    def _replaced(self, job: Job) -> None:
        """Admit a job whose overrides have changed."""
        self._whole.replace(job)
        self._stacks.forget(job)
        self._units.jobs[job.num] = job

    def _adopted(self, job: Job) -> Unit:
        """Admit a clone that is recorded, and return its unit."""
        assert job.origin is not None
        assert self._tracking is not None
        assert self._progress is not None
        note = f"a clone of #{job.origin.job}"
        self._manifest.decide([Decision.here([job.num], self._slots[0], job.slots, note)])
        keys = self._keys.add([job])
        self._take_over(
            SweepPlan([job], self._manifest.entries, self._slots, keys, self.directory, [], {job.num: note})
        )
        self._units.jobs[job.num] = job
        self._places.take([job])
        self._tracking.count(len(self._whole.jobs))
        self._progress.extend([job])
        return Unit((job.num,), job.slots)

    def _admitted(
        self, new: Sequence[NewJob], *, at_rest: bool, listed: Sequence[Sequence[str]] = ()
    ) -> tuple[SweepPlan, list[Unit]]:
        """Return the plan of new jobs, composed and checked, and the units of the jobs to run.

        Nothing is recorded for a dry run.

        Args:
            new: the jobs.
            at_rest: whether no job runs; if so, workers try the new jobs, and measure the widths of stacks.
            listed: the overrides of jobs that are proposed later, and are checked now.

        Raises:
            TrainyardError: a config is invalid.
        """
        manifest = self._manifest
        admission = self._admission
        checked = admission.checked(new, listed)
        jobs, rungs = checked.jobs, checked.rungs
        if at_rest and not checked.wrong:
            self._start_tracker(jobs[0])
        admission.refuse_wrong(checked, tried=at_rest)
        entries = admission.entries(jobs)
        out = {num for num, entry in entries.items() if not entry.is_left or entry.state == "paused"}
        left = [job for job in jobs if job.num not in out and job.num not in self._scheduler.wished]
        recorded = {job.num: it for job in left if (it := entries[job.num].decision) is not None}
        fits = {} if admission.starts_over(job.num for job in jobs) else manifest.fits
        if at_rest:
            probes = self._stacks.probes(left, recorded, fits)
            self._stacks.judge(probes, admission.tried(checked, [each.task for each in probes]))
        stacking = self._stacks.plan(left, recorded, fits)
        decided, not_followed = decide(left, stacking, recorded, self._slots[0])
        keys = self._keys.add(jobs)
        begun = frozenset(job.num for job in left if job.num in recorded and any(job.directory.glob("*")))
        sizes, stacks = self._trials.sizes, stacking.stacks
        plan = SweepPlan(
            jobs, entries, self._slots, keys, self.directory, stacks, stacking.alone, begun, sizes, stacking.seconds
        )
        plan.on_agents = not self._executor.here
        plan.fed = self._stacks.has_lanes and self._policy.timeout is None and self._executor.shares_disk
        for line in not_followed:
            print(line, flush=True)
        self._units.begun.update(job.num for job in jobs if entries[job.num].state != "waiting" or job.num in begun)
        if self.settings.dry_run:
            return plan, []
        if self._plan is None:
            self._begin(jobs)
        self._units.jobs.update({job.num: job for job in jobs})
        notes = {job.num: each.note for job, each in zip(jobs, new, strict=True)}
        proposed = [Proposed(job.num, job.overrides, rungs[job.num], job.subdir, note=notes[job.num]) for job in jobs]
        for event in manifest.define_all(proposed):
            self._scheduler.handle(event)
            tell(self._proposer, event)
        manifest.measured(self._stacks.fits)
        manifest.decide(decided)
        if self._plan is None:
            OmegaConf.save(self.config, self.directory / MULTIRUN)
        return replace(plan, entries=manifest.entries), units_of(left, stacking.stacks, entries, rungs)

    def _take_over(self, plan: SweepPlan) -> None:
        """Add a plan to the earlier ones."""
        self._admission.begun = True
        if self._plan is None:
            self._plan = self._units.plan = replace(plan, jobs=list(plan.jobs))
        else:
            self._plan.extend(plan)

    def _begin(self, jobs: Sequence[Job]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._open.enter_context(self._manifest.held())
        take_over(self.directory)
        if self._admission.starts_over(job.num for job in jobs):
            # Hydra repeats a finished sweep on the same command; jobs that can resume are never repeated.
            self._manifest.clear()
            self._scheduler, self._reports = Scheduler(), Reports()
            CommandFolder(self.directory).clear()
        self._reports.metrics = () if self._proposer.goals is None else self._proposer.goals.bounded
        self._manifest.begin(StartedAs.now(), self._proposer.identity, len(self.grid))
        # What jobs were asked to do when the head before this one was killed has come true.
        ends = fulfilled(self._scheduler.wished, self._reports.last, BY_HAND)
        for event in self._manifest.log(Began(len(self._slots)), *ends):
            self._scheduler.handle(event)
            tell(self._proposer, event)

    def _start_tracker(self, job: Job) -> None:
        """Start the tracker of the sweep, whose process loads MLflow while the fork server loads torch."""
        if self._tracking is None and self._tracker is None and self.application.resumes and not self.settings.dry_run:
            with suppress(Exception):  # the trial of the jobs reports what is wrong with its config
                self._tracker = started_tracker(job.config)


__all__: list[Any] = ["InterruptedSweepError", "Sweep", "SweepFailedError"]
