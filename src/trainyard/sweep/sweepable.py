"""The protocol `Sweepable`, which an application implements for sweeps.

Sweeps run any task function of Hydra's. The jobs of one that is a `Sweepable` object are checked before any of them
starts, resumed, and trained as stacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from hydra.types import TaskFunction
from omegaconf import DictConfig

from trainyard.config.distinct import DistinctConfigs, TrialResult
from trainyard.errors import TrainyardError
from trainyard.track.sweep_position import SweepPosition


class StackFit(Protocol):
    """Width at which a stack is fastest.

    Attributes:
        width: jobs in a stack; 1 if they run one by one.
        reason: why they run one by one; None if they are stacked.
        note: what was measured, for the plan. A width of 1 with a note means that a stack is possible but not faster.
        seconds: of slot time that a job takes so; None if that is unknown.
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
        state: how it ended.
        value: its objective, None if it has none; or several numbers by name (`SweepPosition.metrics`).
        error: why it failed, on one line.
    """

    @property
    def state(self) -> Literal["done", "failed", "interrupted", "paused"]: ...
    @property
    def value(self) -> float | Mapping[str, float | None] | None: ...
    @property
    def error(self) -> str | None: ...


class StackTrainer(Protocol):
    """Trains several jobs as one program. The module `trainyard.fused.train` has these names.

    Attributes:
        ALLOWED: the places of a config (`optim`, `hook.ema.decay`) at or below which numbers may differ in a stack;
            `model.**.dropout`: at a key at any depth.
        FIXED_WITH: those of them at which numbers may differ only where another place holds nothing, with that place.
        NOT_COMPARED: the places that may differ in any way.
        PRELOAD: modules that only stacks import.

    With an attribute `LANES` that is true, `train_stack` takes the further arguments of
    `trainyard.fused.train.train_stack`: jobs then join and leave a stack while it trains.
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
            configs: as Hydra composed them, each with its `hydra` node.
            of: the number of jobs of this kind.
        """

    def train_stack(
        self, configs: Sequence[DictConfig], positions: Sequence[SweepPosition]
    ) -> Sequence[JobResult | None]:
        """Train jobs as one program, in a worker process.

        Args:
            configs: as Hydra composed them, each with its `hydra` node.
            positions: the jobs' positions in the sweep.

        Returns:
            A result for each job, in order; with `LANES`, none for jobs that were reported to its source.

        Raises:
            Unfusable: the jobs cannot train as one program; they run one by one, from their checkpoints.
            StackDivided: they go on in several stacks, from their checkpoints.
        """


@runtime_checkable
class Sweepable(Protocol):
    """An application with support for sweeps: an object that is called with a config, like a task function.

    Attributes:
        resumes: a job resumes from the checkpoint in its directory if its config says `resume: true`. Its config then
            has the keys of a training: `objective` and `direction` rank the sweep, `tracker` tracks it.
        preload: modules that its jobs import; imported once, in the process that jobs are forked from. They must not
            touch CUDA or start threads on import.
        tries: `try_jobs` finds errors that `check` does not.
        fuse: trains jobs that differ only in numbers as one program; None if jobs run one by one.
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
        """Check a job before any is started, quickly, since this is called for each of thousands of jobs.

        Args:
            config: as Hydra composed it, with its `hydra` node, in which the job's number and directory are set. It is
                read only, and valid until this returns: the next job may get the same object with other values.

        Returns:
            The config in plain Python, resolved, without its `hydra` node; None if it was not needed. It is not changed
            later: several jobs share what is equal.

        Raises:
            TrainyardError: the config cannot work.
        """

    def try_jobs(self, configs: DistinctConfigs) -> TrialResult:
        """Try jobs before any is started, in a worker process: build their parts, say.

        Args:
            configs: what `check` returned, of all jobs that differ in more than their seed and their place. A value
                under `hydra.job.env_set` has the environment variables that Hydra sets for the job.
        """

    def slots(self, values: dict[str, Any] | None, room: int) -> int:
        """Return how many slots a job takes.

        Args:
            values: what `check` returned.
            room: the number of slots that a job can take, on several machines together.
        """

    def assist(self) -> None:
        """Take part in a job of several nodes, in a worker on a node after the first (`trainyard.nodes.Nodes`)."""

    def changed(self, before: dict[str, Any] | None, after: dict[str, Any] | None, *, ended: bool) -> Sequence[str]:
        """Return the keys of a clone's config that differ from its job's, and that the checkpoint has too.

        A clone begins from the newest checkpoint of its job: its config has the path of that file as `resume`, and
        these keys as `resume_override`.

        Args:
            before: what `check` returned of the job.
            after: what `check` returned of the clone.
            ended: whether the job has come to its end.

        Raises:
            TrainyardError: a value cannot be changed in the course of a job, or the application cannot clone jobs.
        """

    def at(self, position: SweepPosition) -> TaskFunction:
        """Return the task function of the job at this position of the sweep."""


class SweepableTask:
    """Base for `Sweepable` objects with the behavior of a plain function. Override what is different.

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
        """Function of the class; Hydra looks for a relative `config_path` beside its file."""
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
    """Task function without anything of the protocol."""

    def __init__(self, function: TaskFunction) -> None:
        self.function = function

    def __call__(self, cfg: DictConfig, /) -> Any:
        return self.function(cfg)

    def at(self, position: SweepPosition) -> TaskFunction:
        return self.function


def as_sweepable(function: TaskFunction) -> Sweepable:
    """Return the task function that Hydra was given as a `Sweepable`.

    Raises:
        TrainyardError: the function has only a part of the protocol, which would be ignored.
    """
    if isinstance(function, Sweepable):
        return function
    names = [name for name in ("check", "slots", "resumes", "fuse") if hasattr(function, name)]
    if names:
        raise TrainyardError(
            f"The task function {getattr(function, '__name__', function)!r} has the attributes {', '.join(names)}, "
            "which a sweep does not read from a function. Make it an object of a subclass of "
            "trainyard.sweep.sweepable.SweepableTask."
        )
    return PlainTask(function)
