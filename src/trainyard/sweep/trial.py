"""Trial of jobs before the first of them starts, in a worker, which has imported torch."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.singleton import Singleton

from trainyard.config.distinct import DistinctConfigs, JobSize, TrialResult
from trainyard.errors import TrainyardError
from trainyard.sweep import worker_tasks
from trainyard.sweep.errors import InterruptedSweepError
from trainyard.sweep.executor.base import Executor
from trainyard.sweep.executor.policy import Policy
from trainyard.sweep.executor.task import Task
from trainyard.sweep.plan import Job
from trainyard.sweep.run_tasks import run_tasks
from trainyard.sweep.sweepable import Sweepable

POLICY = Policy(retries=0, timeout=180.0, fail_fast=False, grace=1.0)
ENV = "hydra.job.env_set"
METRICS = "hydra.sweeper.objective"
AGAIN = 1.0
"""Maximum duration of the last trial, in seconds, up to which the jobs of a later batch are also tried."""


class Trials:
    """Tries the jobs of a sweep, batch by batch, if their application can.

    Args:
        application: the jobs' application.
        executor: the executor whose worker tries the jobs.

    Attributes:
        sizes: the sizes of the results of jobs, by number, as far as they are known.
        metrics: the metrics that jobs return, by name; empty for their objective only.
    """

    def __init__(self, application: Sweepable, executor: Executor) -> None:
        self._application = application
        self._executor = executor
        self._seconds = 0.0
        self.sizes: dict[int, JobSize] = {}
        self.metrics: Sequence[str] = ()

    def errors(self, jobs: Sequence[Job]) -> list[tuple[Job, TrainyardError]]:
        """Return the invalid jobs of a batch, each with the reason.

        Args:
            jobs: the jobs, whose values are set.

        Raises:
            InterruptedSweepError: a signal interrupted the trial.
        """
        # A relative path of a job that changes its directory leads elsewhere from here.
        jobs = [job for job in jobs if not job.chdir]
        if not jobs or not self._application.tries or self._seconds > AGAIN:
            return []
        wanted = {METRICS: list(self.metrics)} if self.metrics else {}
        configs, which = DistinctConfigs.of([{**(job.values or {}), **_environment(job), **wanted} for job in jobs])
        found = self._try(jobs[0], configs)
        if found is None:
            return []
        for job, number in zip(jobs, which, strict=True):
            if found.sizes and (size := found.sizes[number]) is not None:
                self.sizes[job.num] = size
        errors = [found.errors[number] for number in which]
        return [(job, TrainyardError(error)) for job, error in zip(jobs, errors, strict=True) if error is not None]

    def _try(self, job: Job, configs: DistinctConfigs) -> TrialResult | None:
        work = worker_tasks.TrialWork(self._application, job.config, Singleton.get_state(), configs)
        task = Task(0, worker_tasks.try_jobs, work, name="the trial of the jobs")
        results = run_tasks(self._executor, [task], POLICY)
        if results.signum is not None:
            raise InterruptedSweepError("Interrupted before the sweep began.", results.signum)
        (outcome,) = results.outcomes
        self._seconds = outcome.seconds
        if outcome.state != "done":
            print(f"The jobs could not be checked before the start: {outcome.error}.", flush=True)
            return None
        found: TrialResult = outcome.value
        if found.left:
            left = f"{found.left} of {len(configs.jobs)} different jobs were not checked before the start"
            print(f"{left}, because the check has a time limit.", flush=True)
        return found


def _environment(job: Job) -> dict[str, dict[str, str]]:
    variables = job.process["environment"]
    return {ENV: variables} if variables else {}
