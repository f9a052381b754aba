"""What happens in a worker: one job of a sweep, as Hydra runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from trainyard.sweep.executor.worker import stand_in_for_main
from trainyard.track import membership
from trainyard.track.membership import Membership

# Found once, in the process that workers are forked from: without it `set_state` would look for them in every job.
_PLUGINS = Plugins.instance()


@dataclass(frozen=True)
class Work:
    """All that a worker needs for one job."""

    context: HydraContext
    function: TaskFunction
    config: DictConfig
    singletons: Any
    membership: Membership | None


def run(work: Work) -> JobReturn:
    """Run a job in its directory; what the job raises is raised here."""
    stand_in_for_main(work.function)
    setup_globals()
    Singleton.set_state({**work.singletons, Plugins: _PLUGINS})
    membership.current = work.membership
    result = run_job(
        hydra_context=work.context,
        task_function=work.function,
        config=work.config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    if result.status is JobStatus.FAILED:
        raise result._return_value  # its getter would print as well
    return result
