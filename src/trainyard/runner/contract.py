"""What loops, and the code that captures and restores a run, ask of the Runner that they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainyard.data import Loader
from trainyard.distributed import Strategy
from trainyard.errors import ConfigError
from trainyard.metrics import Metric
from trainyard.runner.dispatch import Dispatch
from trainyard.runner.member import Member
from trainyard.runner.weights import LoadFrom
from trainyard.schedules import Plateau, Schedule
from trainyard.step.step import Step
from trainyard.track import Tracker


class Loaders(Protocol):
    """What knows the loaders of a run, and so how long an epoch is."""

    def loader(self, split: str) -> Loader: ...


class RunState(Loaders, Protocol):
    """A Runner, as its loops see it: a loop of your own needs no more.

    Attributes:
        iter, epoch: how many are finished.
        training: inside `train()`, not in a validation or test on its own.
        interrupted: the run is to end as resumable.
        asked_to_end: somebody wants that; of several ranks each has to know before they are interrupted.
    """

    iter: int
    epoch: int
    training: bool
    interrupted: bool
    seed: int
    members: list[Member]
    resume: bool | str | Path
    device: torch.device
    tracker: Tracker
    load_from: LoadFrom | None
    strategy: Strategy
    asked_to_end: bool

    @property
    def solos(self) -> Sequence[RunState]:
        """For each member the run as it would be alone."""

    @property
    def arranged(self) -> Sequence[RunState]:
        """The same of all members that the run began with."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def eval_model(self) -> nn.Module: ...

    @property
    def optimizer(self) -> Optimizer: ...

    @property
    def schedule(self) -> Schedule | Plateau | None: ...

    @property
    def step(self) -> Step: ...

    @property
    def metrics(self) -> dict[str, Metric]: ...

    @property
    def dispatch(self) -> Dispatch: ...

    @property
    def train_loop(self) -> Loop: ...

    @property
    def val_loop(self) -> EvalLoop: ...

    @property
    def work_dir(self) -> Path | None: ...

    @property
    def stopping(self) -> bool:
        """Training ends after this iteration."""

    def has_split(self, split: str) -> bool: ...

    def sets(self, split: str) -> tuple[str, ...]:
        """The data sets of a split: `val` itself, or `val/easy` and `val/hard`."""

    def stage(self, name: str) -> list[Callable[..., None]]:
        """The hooks' methods of a stage."""

    def call(self, stage: str, *args: Any, **kwargs: Any) -> None:
        """Call the hooks of a stage."""

    def predict_step(self, split: str) -> Callable[[Any], Any]: ...

    def record_array(self, name: str, value: Tensor) -> None: ...


class Loop(Protocol):
    """A training loop, as the Runner and the hooks see it; a loop of your own has all of this.

    It may have two things more: `stages`, the names of the stages that it calls besides the usual ones, as an attribute
    of the class; and `rehearse(runner)`, which tries before the training what only this loop does.

    Attributes:
        unit: "epoch" or "iter": what a hook counts that is not told.
        val_due: a validation comes before the next iteration: the ValLoop sets it to False when it is through.
    """

    unit: str
    val_due: bool

    def max_epochs(self, runner: Any) -> int:
        """Epochs in the whole run; the last one may be cut short."""

    def max_iters(self, runner: Any) -> int:
        """Iterations in the whole run."""

    def run(self, runner: Any) -> None:
        """Train from where the runner stands to the end, counting `runner.iter` and `runner.epoch`."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on, with `val_due` among it: plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


def checked(key: str, loop: Any, kind: type) -> Any:
    """A loop that has all that `kind` asks for.

    Args:
        key: the argument that gave it, for errors.
        loop: the user's, or ours.
        kind: `Loop` or `EvalLoop`.

    Raises:
        ConfigError: it has not.
    """
    needed = [*kind.__annotations__, *(name for name in vars(kind) if not name.startswith("_"))]
    missing = [name for name in needed if not hasattr(loop, name)]
    if missing:
        accepted = f"an object with {', '.join(needed)} (docs/runner.md)"
        raise ConfigError(key, type(loop).__name__, accepted, hint=f"It has no {missing[0]}.")
    return loop


class EvalLoop(Protocol):
    """A validation, as the Runner and the training loops see it; one of your own is best derived from `ValLoop`.

    Attributes:
        current: the set that is being evaluated, `val` or `val/easy`, for hooks to read.
    """

    current: str

    def run(self, runner: Any) -> list[dict[str, float]]:
        """Evaluate, and return the results of each member by name."""

    def rehearse(self, runner: Any) -> list[str]:
        """Try it in short, and return the names that the results will have."""
