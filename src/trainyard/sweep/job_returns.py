"""What Hydra's sweepers get of a job."""

from __future__ import annotations

from functools import partial

from hydra.core.utils import JobReturn, JobStatus, filter_overrides

from trainyard.sweep.errors import SweepFailedError
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job
from trainyard.sweep.worker_tasks import JobDone, LazyJobReturn


def returned(job: Job, done: JobDone | None, manifest: Manifest) -> JobReturn:
    """Return a job's return as Hydra's type.

    Args:
        job: the job.
        done: what it returned; None if it has not ended now.
        manifest: of its sweep, from whose entry the return of a job that was done before is made.
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
