"""Task of a worker: a stack of jobs as one program, which other jobs may join."""

from __future__ import annotations

import copy
import traceback
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
from hydra.core.utils import JobStatus, env_override
from omegaconf import DictConfig, OmegaConf

from trainyard.config.current_job import current_job
from trainyard.errors import StackDivided, Unfusable
from trainyard.files import RESUME_SWEEP, next_step
from trainyard.sweep import member_log
from trainyard.sweep.compose.hydra_files import HydraFiles
from trainyard.sweep.compose.plain import assign
from trainyard.sweep.executor.wake import Line
from trainyard.sweep.executor.worker import INTERRUPTED, one_line
from trainyard.sweep.lane_source import LaneSource
from trainyard.sweep.sweepable import JobResult, StackTrainer
from trainyard.sweep.worker_tasks import (
    LazyJobReturn,
    StackedJob,
    StackedJobResult,
    StackReturn,
    StackWork,
    all_awake,
    awake,
    collected_never,
    configs_of,
    stack_trainer,
)
from trainyard.track.sweep_position import SweepPosition


@next_step(RESUME_SWEEP)
def run_stack(work: StackWork) -> StackReturn:
    """Run jobs as one stack, each with the same directory and files as in a single run.

    An error that belongs to no job does not end the sweep: the jobs can still run one by one.
    """
    fuse = stack_trainer(work)
    with collected_never():
        configs = configs_of(work)
    with current_job(configs[0]):
        with collected_never():
            files = HydraFiles()
            for config, job in zip(configs, work.jobs, strict=True):
                job.directory.mkdir(parents=True, exist_ok=True)
                if config.hydra.output_subdir is not None:
                    files.write(job.values, job.directory / str(config.hydra.output_subdir))
            member_log.configure(configs, _work_dirs(configs, work.jobs))
        with env_override(configs[0].hydra.job.env_set):
            _call_back(work, configs)
            joined = _Joined(work, configs, files)
            try:
                found = _trained(fuse, work, configs, joined)
                results = [
                    None if each is None else StackedJobResult(each.state, each.value, each.error) for each in found
                ]
                assert work.fed or len(results) == len(configs), "a result for each job"
            except StackDivided as division:
                return StackReturn(None, division.reason, groups=division.groups)
            except Exception as error:
                if getattr(error, "status", None) in INTERRUPTED:
                    raise
                unfit = isinstance(error, Unfusable)
                return StackReturn(None, _reason(error), None if unfit else traceback.format_exc())
            joined.call_back()
            joined.end_all(results)
    return StackReturn(results)


def _trained(
    fuse: StackTrainer, work: StackWork, configs: Sequence[DictConfig], joined: _Joined
) -> Sequence[JobResult | None]:
    positions, line = all_awake(work.positions), Line.of_process
    if not (work.width or work.fed):
        return fuse.train_stack(configs, positions)
    trained: Any = fuse.train_stack  # with the further arguments of a trainer with lanes
    source = LaneSource(line, joined.begin, joined.end) if work.fed and line is not None else None
    found: Sequence[JobResult | None] = trained(configs, positions, source, work.lanes, work.width)
    return found


class _Joined:
    """Jobs that join a stack, each with the same directory and files as in a single run."""

    def __init__(self, work: StackWork, configs: Sequence[DictConfig], files: HydraFiles) -> None:
        self._work = work
        self._files = files
        self._template = cloudpickle.dumps(work.config)
        self._cache = copy.deepcopy(OmegaConf.get_cache(work.config))
        self._reused: DictConfig | None = None
        self._calls_back = bool(work.context.callbacks.callbacks)
        self._configs = dict(enumerate(configs)) if self._calls_back else {}  # for Hydra's callbacks at the end
        self._work_dirs = dict(enumerate(_work_dirs(configs, work.jobs)))
        self._left: deque[tuple[int, JobResult]] = deque()

    def begin(self, job: StackedJob, position: SweepPosition, number: int) -> tuple[DictConfig, SweepPosition]:
        """Return the config and the position of a job that joins; without callbacks of Hydra's, the next job reuses the
        config."""
        self.call_back()
        config = self._config()
        assign(config, job.values)
        job.directory.mkdir(parents=True, exist_ok=True)
        if config.hydra.output_subdir is not None:
            self._files.write(job.values, job.directory / str(config.hydra.output_subdir))
        (self._work_dirs[number],) = _work_dirs([config], [job])
        member_log.join(config, self._work_dirs[number])
        if self._calls_back:
            self._configs[number] = config
            _call_back(self._work, [config], positions=[position])
        return config, awake(position, number)

    def _config(self) -> DictConfig:
        """Return a config to which the values of a job can be assigned, without values that other jobs resolved."""
        if self._calls_back or self._reused is None:
            self._reused = cloudpickle.loads(self._template)
        OmegaConf.set_cache(self._reused, self._cache)
        return self._reused

    def end(self, number: int, result: JobResult) -> None:
        """Record that a job has left; can be called by any thread."""
        self._left.append((number, result))

    def call_back(self) -> None:
        """Perform the actions after the end of jobs that have left."""
        while self._left:
            number, result = self._left.popleft()
            member_log.leave(self._work_dirs.pop(number))
            if (config := self._configs.pop(number, None)) is not None:
                _call_back(self._work, [config], [StackedJobResult(result.state, result.value, result.error)])

    def end_all(self, results: Sequence[StackedJobResult | None]) -> None:
        """Call Hydra's callbacks for the end of all remaining jobs."""
        left = [(config, own) for number, config in self._configs.items() if (own := results[number]) is not None]
        _call_back(self._work, [config for config, _ in left], [own for _, own in left])


def _plain(result: JobResult | None) -> StackedJobResult | None:
    return None if result is None else StackedJobResult(result.state, result.value, result.error)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines and isinstance(error, Unfusable) else one_line(error)


def _work_dirs(configs: Sequence[DictConfig], jobs: Sequence[StackedJob]) -> list[Path]:
    """Return the directories of the jobs: `work_dir` in their configs, else Hydra's directory."""
    work_dirs = []
    for config, job in zip(configs, jobs, strict=True):
        with current_job(config):
            own = OmegaConf.select(config, "work_dir", throw_on_resolution_failure=False)
        work_dirs.append(Path(str(own) if own else job.directory).absolute())
    return work_dirs


def _call_back(
    work: StackWork,
    configs: Sequence[DictConfig],
    results: Sequence[StackedJobResult] | None = None,
    positions: Sequence[SweepPosition] | None = None,
) -> None:
    """Call Hydra's callbacks for each job's start, or end, like `run_job`."""
    if not work.context.callbacks.callbacks:
        return
    for index, config in enumerate(configs):
        with current_job(config):
            if results is None:
                function = work.application.at((positions or work.positions)[index])
                work.context.callbacks.on_job_start(config=config, task_function=function)
                continue
            own = results[index]
            result = LazyJobReturn(config, own.value)
            if own.state != "done":
                result.status = JobStatus.FAILED
                result.return_value = RuntimeError(own.error or own.state)
            work.context.callbacks.on_job_end(config=config, job_return=result)
