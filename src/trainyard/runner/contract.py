"""What loops, and the code that captures and restores a run, ask of the Runner that they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainyard.data import Loader
from trainyard.metrics import Metric
from trainyard.runner.dispatch import Dispatch
from trainyard.runner.members import Member
from trainyard.runner.step import Step
from trainyard.schedules import Plateau, Schedule
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
    load_from: str | Path | None

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

    def stage(self, name: str) -> list[Callable[..., None]]:
        """The hooks' methods of a stage."""

    def call(self, stage: str, *args: Any, **kwargs: Any) -> None:
        """Call the hooks of a stage."""

    def predict_step(self, split: str) -> Callable[[Any], Any]: ...

    def record_array(self, name: str, value: Tensor) -> None: ...


class Loop(Protocol):
    """A training loop, as the state of a run sees it."""

    val_due: bool

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class EvalLoop(Protocol):
    """A validation, as the training loops see it."""

    def run(self, runner: Any) -> list[dict[str, float]]: ...

    def rehearse(self, runner: Any) -> list[str]: ...
