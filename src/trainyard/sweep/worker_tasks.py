"""Tasks of workers: a job as run by Hydra, a stack of jobs as one program, and the probe of a stack's width."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, env_override, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from trainyard.config.current_job import current_job
from trainyard.config.distinct import DistinctConfigs, TrialResult
from trainyard.config.hydra_versions import changes_directory, configure_log
from trainyard.config.plain import plain
from trainyard.files import RESUME_SWEEP, next_step
from trainyard.nodes import Nodes
from trainyard.sweep.compose.hydra_files import write_alone
from trainyard.sweep.compose.plain import assign
from trainyard.sweep.compose.recipe import Shared
from trainyard.sweep.executor.task import TaskState
from trainyard.sweep.executor.wake import Wake
from trainyard.sweep.executor.worker import stand_in_for_main
from trainyard.sweep.job_configs import JobRecipe
from trainyard.sweep.sweepable import StackFit, StackTrainer, Sweepable
from trainyard.track import facts
from trainyard.track.sweep_position import SweepPosition

# Looked up once, in the process that workers are forked from: else each job would do so.
_PLUGINS = Plugins.instance()
facts.versions()


@dataclass(frozen=True)
class JobWork:
    """Data that a worker needs for one job.

    Attributes:
        config: the config of the job, or the data from which it is composed.
        position: the position of the job in the sweep.
        resume: the value of the key `resume` for the job; False if the job starts from the beginning.
        keys: the keys at which the job differs from the checkpoint, in addition to those of its `resume_override`.
    """

    config: DictConfig | JobRecipe
    position: SweepPosition
    resume: bool | str = False
    keys: tuple[str, ...] = ()

    def composed(self, shared: Shared | None) -> DictConfig:
        """Return the config."""
        if isinstance(self.config, DictConfig):
            config = self.config
        else:
            assert shared is not None
            config = self.config.make(shared)
        if self.resume:
            config.resume = self.resume
        if self.keys:
            config.resume_override = [*(config.resume_override or ()), *self.keys]
        return config


@dataclass(frozen=True)
class JobCommon:
    """Data that a worker needs for one job, and that several jobs have in common.

    Attributes:
        shared: the data from which the configs of these jobs are composed; None if each config is sent completely.
    """

    context: HydraContext
    application: Sweepable
    singletons: Any
    shared: Shared | None


@dataclass(frozen=True)
class StackedJob:
    """Job of a stack.

    Attributes:
        values: the config of the job, unresolved, in the form of `trainyard.config.plain.plain`, with its `hydra` node.
        directory: the directory in which Hydra runs the job.
    """

    values: dict[str, Any]
    directory: Path


@dataclass(frozen=True)
class StackWork:
    """Data that a worker needs for a stack.

    Attributes:
        config: the config of one job, from which the configs of all jobs are created, because sending a config takes
            forty times as long as sending its values.
        jobs: the jobs, in the order of their numbers.
        positions: the position of each job in the sweep; empty for a probe.
        of: the number of jobs of this kind, if these are a sample.
        lanes: the lane of each job; empty for all lanes, in order.
        width: the number of lanes, including the free ones; 0 for one lane per job.
        fed: whether further jobs can join.
    """

    context: HydraContext
    application: Sweepable
    config: DictConfig
    singletons: Any
    jobs: Sequence[StackedJob]
    positions: Sequence[SweepPosition] = ()
    of: int = 0
    lanes: Sequence[int] = ()
    width: int = 0
    fed: bool = False


@dataclass(frozen=True)
class TrialWork:
    """Data that a worker needs to try jobs.

    Attributes:
        config: the config of one of the jobs, which is Hydra's current config during the trial.
        configs: the distinct configs of all jobs.
    """

    application: Sweepable
    config: DictConfig
    singletons: Any
    configs: DistinctConfigs


@dataclass(frozen=True)
class JobDone:
    """Result of a finished job: the part of a `JobReturn` that only the process of the job knows; None for the values
    of the head."""

    return_value: Any
    working_dir: str | None = None
    task_name: str | None = None


@dataclass(frozen=True)
class StackedJobResult:
    """Result of a job of a stack."""

    state: TaskState
    value: Any = None
    error: str | None = None


@dataclass(frozen=True)
class StackReturn:
    """Result of a stack.

    Attributes:
        results: the result of each job, in order; None if the jobs did not train as one program. The result of a job is
            None if it was already reported.
        reason: the reason why the jobs did not train as one program, on one line.
        traceback: the traceback of the error that ended the stack; None if the jobs cannot share a stack.
        groups: the groups of jobs that continue together, by index; empty if the jobs continue one by one.
    """

    results: Sequence[StackedJobResult | None] | None
    reason: str = ""
    traceback: str | None = None
    groups: Sequence[Sequence[int]] = ()


class LazyJobReturn(JobReturn):
    """Hydra's return value for a finished job. Its configs are copied only when they are read.

    Args:
        config: the config, or a function that returns it.
        value: the return value of the job.
        working_dir, task_name: the working directory and the task name of the job; None for those of this process.
    """

    def __init__(
        self,
        config: DictConfig | Callable[[], DictConfig],
        value: Any,
        working_dir: str | None = None,
        task_name: str | None = None,
    ) -> None:
        super().__init__(
            working_dir=str(Path.cwd()) if working_dir is None else working_dir,
            task_name=JobRuntime.instance().get("name") if task_name is None else task_name,
            status=JobStatus.COMPLETED,
        )
        self.return_value = value
        self._config = config
        del self.__dict__["cfg"], self.__dict__["hydra_cfg"], self.__dict__["overrides"]

    def _whole(self) -> DictConfig:
        return self._config if isinstance(self._config, DictConfig) else self._config()

    @cached_property
    def overrides(self) -> Sequence[str]:  # type: ignore[override]
        """The overrides of the task."""
        return OmegaConf.to_container(self._whole().hydra.overrides.task)  # type: ignore[return-value]

    @cached_property
    def cfg(self) -> DictConfig:  # type: ignore[override]
        """The config of the task."""
        cfg = copy.deepcopy(self._whole())
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        return cfg

    @cached_property
    def hydra_cfg(self) -> DictConfig:  # type: ignore[override]
        """The config in the `hydra` node."""
        return OmegaConf.masked_copy(self._whole(), "hydra")


@next_step(RESUME_SWEEP)
def run_one(work: JobWork, common: JobCommon) -> JobDone:
    """Run a job in its directory, or its part on a further node; an error of the job is raised here."""
    if (nodes := Nodes.find()) is not None and nodes.index:
        stand_in_for_main(common.application)
        common.application.assist()
        return JobDone(None)
    function = common.application.at(all_awake([work.position])[0])
    _take_over(function, common.singletons)
    with collected_never():
        config = work.composed(common.shared)
    if common.shared is not None and not changes_directory(config):
        return run_here(function, config, common.context)
    result = run_job(
        hydra_context=common.context,
        task_function=function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    if result.status is JobStatus.FAILED:
        raise result._return_value  # its getter would print as well
    return JobDone(result.return_value, str(result.working_dir), str(result.task_name))


def run_here(function: TaskFunction, config: DictConfig, context: HydraContext) -> JobDone:
    """Run a job as `hydra.core.utils.run_job` does one that stays in the current folder, with one copy of its config.

    Hydra copies the config five times, and writes the job's files slowly: a third of the time of a short training.

    Args:
        function: the task function.
        config: the job's config.
        context: Hydra's context.
    """
    with current_job(config):
        with read_write(config), open_dict(config):
            directory = Path(str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir)).absolute()
            config.hydra.runtime.output_dir = str(directory)
        OmegaConf.set_readonly(config.hydra, True)
        own = copy.deepcopy(config)  # a function may change its config
        with read_write(own), open_dict(own):
            del own["hydra"]
        directory.mkdir(parents=True, exist_ok=True)
        configure_log(config.hydra.job_logging, config.hydra.verbose)
        if config.hydra.output_subdir is not None:
            write_alone(plain(config), directory / str(config.hydra.output_subdir))
        result = LazyJobReturn(config, None)
        with env_override(config.hydra.job.env_set):
            context.callbacks.on_job_start(config=config, task_function=function)
            try:
                result.return_value = function(own)
            except Exception as error:
                result.status, result.return_value = JobStatus.FAILED, error
        for handler in logging.root.handlers:
            handler.flush()
        context.callbacks.on_job_end(config=config, job_return=result)
    if result.status is JobStatus.FAILED:
        raise result._return_value
    return JobDone(result.return_value, str(result.working_dir), str(result.task_name))


def all_awake(positions: Sequence[SweepPosition]) -> list[SweepPosition]:
    """Return the positions of a task's jobs, with the function that sends their reports if reports are requested."""
    return [awake(position, index) for index, position in enumerate(positions)]


def awake(position: SweepPosition, index: int) -> SweepPosition:
    wake = Wake.of_process
    return position if position.rungs is None or wake is None else replace(position, wake=partial(wake, index))


def try_jobs(work: TrialWork) -> TrialResult:
    """Try jobs with the trial of their application."""
    _take_over(work.application, work.singletons)
    with current_job(work.config):
        return work.application.try_jobs(work.configs)


def probe_stack(work: StackWork) -> StackFit:
    """Measure the width at which a stack of these jobs is fastest, with the probe of their application."""
    fuse = stack_trainer(work)
    with collected_never():
        configs = configs_of(work)
    with current_job(configs[0]), env_override(configs[0].hydra.job.env_set):
        return fuse.probe(configs, work.of)


def stack_trainer(work: StackWork) -> StackTrainer:
    _take_over(work.application, work.singletons)
    assert work.application.fuse is not None, "the plan has no stacks for an application without"
    return work.application.fuse


def _take_over(function: TaskFunction, singletons: Any) -> None:
    stand_in_for_main(function)
    setup_globals()
    Singleton.set_state({**singletons, "instances": {**singletons["instances"], Plugins: _PLUGINS}})


def configs_of(work: StackWork) -> list[DictConfig]:
    """Return the jobs' configs, each independent of the others."""
    pickled = cloudpickle.dumps(work.config)
    configs = []
    for job in work.jobs:
        config: DictConfig = cloudpickle.loads(pickled)
        assign(config, job.values)
        configs.append(config)
    return configs


@contextmanager
def collected_never() -> Iterator[None]:
    """Exempt objects that are created here from garbage collection, because they live as long as the process."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
