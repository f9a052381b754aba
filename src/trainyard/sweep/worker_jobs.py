"""What happens in a worker: a job of a sweep, as Hydra runs it, or several as one program."""

from __future__ import annotations

import copy
import gc
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, env_override, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from trainyard.errors import Unfusable
from trainyard.sweep import member_log
from trainyard.sweep.compose.hydra_files import HydraFiles
from trainyard.sweep.compose.plain import assign
from trainyard.sweep.executor.worker import INTERRUPTED, one_line, stand_in_for_main
from trainyard.sweep.jobs import State
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


@dataclass(frozen=True)
class Member:
    """A job of a group.

    Attributes:
        values: its config, unresolved, as `trainyard.sweep.compose.plain.plain` gives it, with its `hydra` node.
        directory: where Hydra lets it run.
        membership: its place in the sweep.
    """

    values: dict[str, Any]
    directory: Path
    membership: Membership | None


@dataclass(frozen=True)
class GroupWork:
    """All that a worker needs for a group.

    Attributes:
        config: of one of the members, of which those of all are made: a config takes forty times as long to send as
            its values.
        of: how many jobs there are of this kind, where these are a sample.
    """

    context: HydraContext
    function: TaskFunction
    config: DictConfig
    singletons: Any
    members: Sequence[Member]
    of: int = 0


@dataclass(frozen=True)
class Result:
    """What became of a member."""

    state: State
    value: Any = None
    error: str | None = None


@dataclass(frozen=True)
class GroupReturn:
    """What became of a group.

    Attributes:
        results: of each member, in their order; None where they did not train as one program.
        reason: why not, on one line.
        traceback: of the error that ended it; None where it was found, before anything was written, that it could not
            be.
    """

    results: Sequence[Result] | None
    reason: str = ""
    traceback: str | None = None


class MemberReturn(JobReturn):
    """What Hydra returns for a job. Its configs are copied when somebody asks for them: that takes long."""

    def __init__(self, config: DictConfig, value: Any) -> None:
        super().__init__(
            overrides=OmegaConf.to_container(config.hydra.overrides.task),  # type: ignore[arg-type]
            working_dir=str(Path.cwd()),
            task_name=JobRuntime.instance().get("name"),
            status=JobStatus.COMPLETED,
        )
        self.return_value = value
        self._config = config
        del self.__dict__["cfg"], self.__dict__["hydra_cfg"]

    @cached_property
    def cfg(self) -> DictConfig:  # type: ignore[override]
        """The task's own config."""
        cfg = copy.deepcopy(self._config)
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        return cfg

    @cached_property
    def hydra_cfg(self) -> DictConfig:  # type: ignore[override]
        """Hydra's node."""
        return OmegaConf.masked_copy(self._config, "hydra")


def run(work: Work) -> JobReturn:
    """Run a job in its directory; what the job raises is raised here."""
    _take_over(work.function, work.singletons)
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


def probe(work: GroupWork) -> Any:
    """How wide these jobs can be fused, in the words of their application."""
    _take_over(work.function, work.singletons)
    with _collected_never():
        configs = _configs(work)
    with _known_to_hydra(configs[0]), env_override(configs[0].hydra.job.env_set):
        return work.function.fuse.probe(configs, work.of)  # type: ignore[attr-defined]


def run_group(work: GroupWork) -> GroupReturn:
    """Run jobs as one program, each with the directory and files that it would have alone.

    An error that belongs to none of them does not end the sweep: they can still run one by one.
    """
    _take_over(work.function, work.singletons)
    fuse: Any = work.function.fuse  # type: ignore[attr-defined]
    with _collected_never():
        configs = _configs(work)
    with _known_to_hydra(configs[0]):
        with _collected_never():
            files = HydraFiles()
            for config, member in zip(configs, work.members, strict=True):
                member.directory.mkdir(parents=True, exist_ok=True)
                if config.hydra.output_subdir is not None:
                    files.write(member.values, member.directory / str(config.hydra.output_subdir))
            member_log.configure(configs, _work_dirs(configs, work.members))
        with env_override(configs[0].hydra.job.env_set):
            _call_back(work, configs, "on_job_start")
            try:
                found = fuse.train_group(configs, [member.membership for member in work.members])
                results = [Result(each.state, each.value, each.error) for each in found]
                assert len(results) == len(configs), "a result for each member"
            except Exception as error:
                if getattr(error, "status", None) in INTERRUPTED:
                    raise
                unfit = isinstance(error, Unfusable)
                return GroupReturn(None, _reason(error), None if unfit else traceback.format_exc())
        _call_back(work, configs, "on_job_end", results)
    return GroupReturn(results)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines and isinstance(error, Unfusable) else one_line(error)


def _take_over(function: Callable[[Any], Any], singletons: Any) -> None:
    stand_in_for_main(function)
    setup_globals()
    Singleton.set_state({**singletons, Plugins: _PLUGINS})


def _configs(work: GroupWork) -> list[DictConfig]:
    """The members' configs, each a whole one of its own."""
    pickled = cloudpickle.dumps(work.config)
    configs = []
    for member in work.members:
        config: DictConfig = cloudpickle.loads(pickled)
        assign(config, member.values)
        configs.append(config)
    return configs


def _work_dirs(configs: Sequence[DictConfig], members: Sequence[Member]) -> list[Path]:
    """Where the members train: what their configs call `work_dir`, else Hydra's directory."""
    work_dirs = []
    for config, member in zip(configs, members, strict=True):
        with _known_to_hydra(config):
            own = OmegaConf.select(config, "work_dir", throw_on_resolution_failure=False)
        work_dirs.append(Path(str(own) if own else member.directory).absolute())
    return work_dirs


def _call_back(
    work: GroupWork, configs: Sequence[DictConfig], stage: str, results: Sequence[Result] | None = None
) -> None:
    """Tell Hydra's callbacks of each job, as `run_job` does."""
    if not work.context.callbacks.callbacks:
        return
    for index, config in enumerate(configs):
        with _known_to_hydra(config):
            if results is None:
                work.context.callbacks.on_job_start(config=config, task_function=work.function)
                continue
            result = MemberReturn(config, results[index].value)
            if results[index].state != "done":
                result.status = JobStatus.FAILED
                result.return_value = RuntimeError(results[index].error or results[index].state)
            work.context.callbacks.on_job_end(config=config, job_return=result)


@contextmanager
def _collected_never() -> Iterator[None]:
    """What is made here lives as long as the process: the garbage collector need not visit it, again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _known_to_hydra(config: DictConfig) -> Iterator[None]:
    """`${hydra:…}` reads from this config."""
    hydra = HydraConfig.instance()
    before, hydra.cfg = hydra.cfg, config  # type: ignore[assignment]
    try:
        yield
    finally:
        hydra.cfg = before


__all__: list[Any] = [
    "GroupReturn",
    "GroupWork",
    "Member",
    "MemberReturn",
    "Result",
    "Work",
    "probe",
    "run",
    "run_group",
]
