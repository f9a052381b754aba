"""The protocol `Sweepable`, which an application implements for sweeps.

Sweeps run any task function for Hydra. If the task function is a `Sweepable` object, its jobs can also be checked
before any of them starts, resumed, and trained as stacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from hydra.types import TaskFunction
from omegaconf import DictConfig

from trainyard.config.distinct import DistinctConfigs, TrialResult
from trainyard.errors import TrainyardError
from trainyard.track.sweep_position import SweepPosition

STACK_TASKS = "trainyard.sweep.stack_tasks"
"""Module of the task of a stack."""


class StackFit(Protocol):
    """Width at which a stack is fastest.

    Attributes:
        width: the number of jobs in a stack; 1 if they run one by one.
        reason: the reason why the jobs run one by one; None if they are stacked.
        note: the measurement, for the plan. A width of 1 with a note means that a stack is possible but not faster.
        seconds: the slot time of a job at this width; None if it is unknown.
    """

    @property
    def width(self) -> int: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def note(self) -> str: ...
    @property
    def seconds(self) -> float | None: ...


class JobResult(Protocol):
    """Result of one job of a stack.

    Attributes:
        state: the final state of the job.
        value: the objective, None if there is none; or several numbers by name (`SweepPosition.metrics`).
        error: the reason for a failure or an interruption, on one line.
    """

    @property
    def state(self) -> Literal["done", "failed", "interrupted", "paused"]: ...
    @property
    def value(self) -> float | Mapping[str, float | None] | None: ...
    @property
    def error(self) -> str | None: ...


class StackTrainer(Protocol):
    """Trains several jobs as one program. The module `trainyard.fused.train` implements this protocol.

    Attributes:
        ALLOWED: the places of a config (`optim`, `hook.ema.decay`) at or below which numbers may differ in a stack;
            `**` stands for any depth (`model.**.dropout`).
        FIXED_WITH: the places among these at which numbers may differ only if another place is empty, with that place.
        NOT_COMPARED: the places that may differ in any way.
        PRELOAD: the modules that only stacks import.

    If the attribute `LANES` is true, `train_stack` accepts the further arguments of
    `trainyard.fused.train.train_stack`, so that jobs can join and leave a stack while it trains.
    """

    @property
    def ALLOWED(self) -> Sequence[str]: ...  # noqa: N802 - a constant where a module is the trainer
    @property
    def FIXED_WITH(self) -> Mapping[str, str]: ...  # noqa: N802
    @property
    def NOT_COMPARED(self) -> Sequence[str]: ...  # noqa: N802
    @property
    def PRELOAD(self) -> Sequence[str]: ...  # noqa: N802

    def widest(self, device: str) -> int:
        """Return the width of the widest stack that is tried on a device (`cpu`, `cuda:0`)."""

    def probe(self, configs: Sequence[DictConfig], of: int) -> StackFit:
        """Measure, in a worker process, the width at which a stack of these jobs is fastest.

        Args:
            configs: the configs as composed by Hydra, each with its `hydra` node.
            of: the number of all jobs of this kind.
        """

    def train_stack(
        self, configs: Sequence[DictConfig], positions: Sequence[SweepPosition]
    ) -> Sequence[JobResult | None]:
        """Train jobs as one program, in a worker process.

        Args:
            configs: the configs as composed by Hydra, each with its `hydra` node.
            positions: the jobs' positions in the sweep.

        Returns:
            A result for each job, in order; with `LANES`, without the jobs that were already reported to the source.

        Raises:
            Unfusable: the jobs cannot train as one program. They then run one by one, from their checkpoints.
            StackDivided: the jobs continue in several stacks, from their checkpoints.
        """


@runtime_checkable
class Sweepable(Protocol):
    """An application that supports sweeps: an object that is called with a config, like a task function.

    Attributes:
        resumes: whether a job resumes from the checkpoint in its directory if its config contains `resume: true`. Its
            config then has the keys of a training: `objective` and `direction` rank the sweep, and `tracker` tracks it.
        preload: the modules that jobs import. They are imported once, in the process from which jobs are forked. They
            must not use CUDA or start threads on import.
        tries: whether `try_jobs` finds errors that `check` does not find.
        fuse: the trainer of stacks, which trains jobs that differ only in numbers as one program; None if jobs run one
            by one.
    """

    @property
    def tries(self) -> bool: ...
    @property
    def resumes(self) -> bool: ...
    @property
    def preload(self) -> Sequence[str]: ...
    @property
    def fuse(self) -> StackTrainer | None: ...

    def __call__(self, cfg: DictConfig, /) -> Any:
        """Run a job and return its objective."""

    def check(self, config: DictConfig) -> dict[str, Any] | None:
        """Check a job before any job is started. This must be fast, because it is called for thousands of jobs.

        Args:
            config: the config as composed by Hydra, with its `hydra` node, in which the job's number and directory are
                set. It is read-only, and valid only until this method returns: the next job may receive the same object
                with other values.

        Returns:
            The config in plain Python, resolved, without its `hydra` node; None if it was not needed. It is not changed
            later, because several jobs share equal parts.

        Raises:
            TrainyardError: the config is invalid.
        """

    def try_jobs(self, configs: DistinctConfigs) -> TrialResult:
        """Try jobs before any job is started, in a worker process, for example by building their parts.

        Args:
            configs: the results of `check` for all jobs that differ in more than their seed and their directory. A
                value under `hydra.job.env_set` contains the environment variables that Hydra sets for the job.
        """

    def slots(self, values: dict[str, Any] | None, room: int) -> int:
        """Return how many slots a job takes.

        Args:
            values: the result of `check`.
            room: the number of slots that are available to one job, on several machines together.
        """

    def assist(self) -> None:
        """Take part in a job of several nodes, in a worker on one of the nodes after the first
        (`trainyard.nodes.Nodes`)."""

    def changed(self, before: dict[str, Any] | None, after: dict[str, Any] | None, *, ended: bool) -> Sequence[str]:
        """Return the keys of a clone's config that differ from the config of its job, and that the checkpoint also has.

        A clone starts from the newest checkpoint of its job: its config has the path of that file as `resume`, and
        these keys as `resume_override`.

        Args:
            before: the result of `check` for the job.
            after: the result of `check` for the clone.
            ended: whether the job has finished.

        Raises:
            TrainyardError: a value cannot be changed during a job, or the application cannot clone jobs.
        """

    def at(self, position: SweepPosition) -> TaskFunction:
        """Return the task function of the job at this position of the sweep."""


class SweepableTask:
    """Base class for `Sweepable` objects, with the behavior of a plain function. Override what differs.

    Example:
        >>> class App(SweepableTask):
        ...     resumes = True
        ...
        ...     def __call__(self, cfg):
        ...         return cfg.x**2
        ...
        ...     def check(self, config):
        ...         if config.x < 0:
        ...             raise TrainyardError(f"x: {config.x} is invalid. Expected a number of at least 0.")
        >>> isinstance(App(), Sweepable)
        True

        `hydra.main(version_base="1.3", config_path="conf", config_name="app")(App())()` runs it.
    """

    tries: bool = False
    resumes: bool = False
    preload: Sequence[str] = ()
    fuse: StackTrainer | None = None

    def __call__(self, cfg: DictConfig, /) -> Any:
        raise NotImplementedError

    @property
    def __wrapped__(self) -> Any:
        """Function of the class. Hydra resolves a relative `config_path` against the folder of its file."""
        return type(self).__call__

    def check(self, config: DictConfig) -> dict[str, Any] | None:
        return None

    def try_jobs(self, configs: DistinctConfigs) -> TrialResult:
        raise NotImplementedError

    def slots(self, values: dict[str, Any] | None, room: int) -> int:
        return 1

    def assist(self) -> None:
        raise NotImplementedError

    def changed(self, before: dict[str, Any] | None, after: dict[str, Any] | None, *, ended: bool) -> Sequence[str]:
        raise TrainyardError("this sweep's application cannot clone jobs")

    def at(self, position: SweepPosition) -> TaskFunction:
        return self


class PlainTask(SweepableTask):
    """Task function that implements nothing of the protocol."""

    def __init__(self, function: TaskFunction) -> None:
        self.function = function

    def __call__(self, cfg: DictConfig, /) -> Any:
        return self.function(cfg)

    def at(self, position: SweepPosition) -> TaskFunction:
        return self.function


def as_sweepable(function: TaskFunction) -> Sweepable:
    """Return the task function that was passed to Hydra, as a `Sweepable`.

    Raises:
        TrainyardError: the function has only a part of the protocol, which would be ignored.
    """
    if isinstance(function, Sweepable):
        return function
    names = [name for name in ("check", "slots", "resumes", "fuse") if hasattr(function, name)]
    if names:
        several = "s" if len(names) > 1 else ""
        raise TrainyardError(
            f"The task function {getattr(function, '__name__', function)!r} has the attribute{several} "
            f"{', '.join(names)}, which a sweep does not read from a function. Instead of the function, use an object "
            "of a subclass of trainyard.sweep.sweepable.SweepableTask."
        )
    return PlainTask(function)


def preloaded(application: Sweepable, fuse: int | str) -> list[str]:
    """Return the modules to import once, in the process from which workers are forked.

    Args:
        application: the jobs' application.
        fuse: the setting that determines whether jobs train as stacks.
    """
    stacked = application.fuse.PRELOAD if application.fuse is not None and fuse != "off" else ()
    return [*application.preload, *stacked, STACK_TASKS]
