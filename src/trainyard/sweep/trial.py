"""Trial of jobs before the first of them starts, in a worker, which has imported torch, and probes of their stacks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra.core.singleton import Singleton

from trainyard.config.distinct import DistinctConfigs, JobSize, TrialResult
from trainyard.errors import TrainyardError
from trainyard.sweep import worker_tasks
from trainyard.sweep.errors import InterruptedSweepError
from trainyard.sweep.executor.base import Executor
from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.executor.task import Task, TaskOutcome
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job
from trainyard.sweep.run_tasks import Callbacks, run_tasks
from trainyard.sweep.sweepable import Sweepable
from trainyard.track.sweep_position import Rungs

POLICY = Policy(retries=0, timeout=180.0, fail_fast=False, grace=1.0)
ENV = "hydra.job.env_set"
METRICS = "hydra.sweeper.objective"
RUNGS = "hydra.sweeper.rungs"
AGAIN = 1.0
"""Maximum duration of the last trial, in seconds, up to which the jobs of a later batch are also tried."""


@dataclass(frozen=True)
class Tried:
    """Result of the trial of a batch.

    Attributes:
        errors: the invalid jobs, each with the reason.
        probes: the outcomes of the probes; empty if a job is invalid.
    """

    errors: Sequence[tuple[Job, TrainyardError]]
    probes: Sequence[TaskOutcome]


class Trials:
    """Tries the jobs of a sweep, batch by batch, if their application can, while the widths of their stacks are probed.

    Args:
        application: the jobs' application.
        executor: the executor whose worker tries the jobs.
        prober: the executor on whose slots widths are probed. If it is the same one, probes run at the same time as the
            trial.
        manifest: the manifest of the sweep.

    Attributes:
        sizes: the sizes of the results of jobs, by number, as far as they are known.
        metrics: the metrics that jobs return, by name, each with the key of the config that names it; empty for their
            objective only.
        rungs: the rungs at which the jobs of the batch report, by number; jobs that do not report may be missing.
    """

    def __init__(self, application: Sweepable, executor: Executor, prober: Executor, manifest: Manifest) -> None:
        self._application = application
        self._executor = executor
        self._prober = prober
        self._manifest = manifest
        self._seconds = 0.0
        self.sizes: dict[int, JobSize] = {}
        self.metrics: Mapping[str, str] = {}
        self.rungs: Mapping[int, Rungs | None] = {}

    def run(self, jobs: Sequence[Job], probes: Sequence[Task]) -> Tried:
        """Try the jobs of a batch, and run the probes. If a job is invalid, the probes are stopped.

        Args:
            jobs: the jobs, whose values are set.
            probes: the probes, numbered from 1.

        Raises:
            InterruptedSweepError: a signal interrupted the trial or a probe.
        """
        # A relative path of a job that changes its directory leads elsewhere from here.
        jobs = [job for job in jobs if not job.chdir]
        if not jobs or not self._application.tries or self._seconds > AGAIN:
            return Tried([], self._run(self._prober, probes))
        wanted = {METRICS: dict(self.metrics)} if self.metrics else {}
        rungs = [{} if (at := self.rungs.get(job.num)) is None else {RUNGS: at} for job in jobs]
        configs, which = DistinctConfigs.of(
            [{**(job.values or {}), **_environment(job), **wanted, **own} for job, own in zip(jobs, rungs, strict=True)]
        )
        work = worker_tasks.TrialWork(self._application, jobs[0].config, Singleton.get_state(), configs)
        task = Task(0, worker_tasks.try_jobs, work, name="the check of the jobs")
        together = probes if self._prober is self._executor else ()
        trial, *probed = self._run(self._executor, [task, *together])
        errors = self._errors(trial, configs, [(job, number) for job, number in zip(jobs, which, strict=True)])
        if errors:
            return Tried(errors, ())
        return Tried([], probed if together else self._run(self._prober, probes))

    def _errors(
        self, trial: TaskOutcome, configs: DistinctConfigs, jobs: Sequence[tuple[Job, int]]
    ) -> list[tuple[Job, TrainyardError]]:
        """Return the invalid jobs; record the sizes of the others.

        Args:
            trial: the outcome of the trial.
            configs: the configs that it tried.
            jobs: the jobs, with the numbers of their configs.
        """
        self._seconds = trial.seconds
        if trial.state != "done":
            reason = str(trial.error).rstrip(".")
            print(
                f"The check of the jobs before the start failed: {reason}. The sweep continues without this check.",
                flush=True,
            )
            return []
        found: TrialResult = trial.value
        if found.left:
            were = "was" if found.left == 1 else "were"
            left = f"{found.left} of {len(configs.jobs)} distinct configs {were} not checked before the start"
            print(f"{left}, because the check has a time limit.", flush=True)
        if found.sizes:
            self.sizes.update({job.num: size for job, number in jobs if (size := found.sizes[number]) is not None})
        errors = [(job, found.errors[number]) for job, number in jobs]
        return [(job, TrainyardError(error)) for job, error in errors if error is not None]

    def _run(self, executor: Executor, tasks: Sequence[Task]) -> list[TaskOutcome]:
        """Run a trial and probes, until the trial finds an invalid job.

        Raises:
            InterruptedSweepError: a signal was received.
        """
        if not tasks:
            return []
        if tasks[-1].function is worker_tasks.probe_stack and sys.stdout.isatty():
            print("Measuring the speed of stacks …", flush=True)
        results = run_tasks(executor, tasks, POLICY, Callbacks(ends=_finds_errors))
        if results.signum is not None:
            raise InterruptedSweepError.between_jobs(self._manifest, results.signum)
        return results.outcomes


def _finds_errors(outcome: TaskOutcome) -> bool:
    return isinstance(outcome.value, TrialResult) and any(error is not None for error in outcome.value.errors)


def _environment(job: Job) -> dict[str, dict[str, str]]:
    variables = job.process["environment"]
    return {ENV: variables} if variables else {}
