"""Return values of jobs for Hydra's sweepers."""

from __future__ import annotations

from functools import partial

from hydra.core.utils import JobReturn, JobStatus, filter_overrides

from trainyard.sweep.errors import SweepFailedError
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job
from trainyard.sweep.worker_tasks import JobDone, LazyJobReturn


def returned(job: Job, done: JobDone | None, manifest: Manifest) -> JobReturn:
    """Return the result of a job as Hydra's type.

    Args:
        job: the job.
        done: its result; None if it has not ended in this command.
        manifest: the manifest of its sweep, from which the result of an earlier finished job is created.
    """
    if done is not None:
        return LazyJobReturn(partial(getattr, job, "config"), done.return_value, done.working_dir, done.task_name)
    result = JobReturn(overrides=list(filter_overrides(job.overrides)), working_dir=str(job.directory))
    entry = manifest.entries[job.num]
    if not entry.is_left:
        result.status, result.return_value = JobStatus.COMPLETED, entry.objective
    else:
        result.status, result.return_value = JobStatus.FAILED, SweepFailedError(manifest)
    return result
