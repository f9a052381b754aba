"""One device: what the Runner asks of a strategy, answered for a run that is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trainyard.data import Loader
from trainyard.metrics import Metric

T = TypeVar("T")


class Strategy:
    """Trains on one device.

    A strategy for several devices (`DDP`, `FSDP`) overrides what is different there. Every rank runs the same loops
    over its share of each batch; the numbers are those of one device.

    Attributes:
        rank: the number of this process, from 0.
        world_size: how many there are.
        gathers: a forward pass needs all ranks.
        own_gradients: between two steps a rank's gradients are its own, and not the mean of all yet.
    """

    rank: int = 0
    world_size: int = 1
    gathers: bool = False
    own_gradients: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes: the journal, the files that there is one of, the progress."""
        return self.rank == 0

    def begin(self, device: torch.device) -> torch.device:
        """Meet the other ranks; returns the device of this one."""
        return device

    def end(self) -> None:
        """Part from the other ranks."""

    def place(self, model: nn.Module) -> nn.Module:
        """The model as it is trained, before its optimiser is made."""
        return model

    def train_step(self, model: nn.Module, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """What the optimisation step calls with a batch, in place of the model's own `step`."""
        return step

    def no_sync(self) -> AbstractContextManager[None]:
        """Around forward and backward of a batch after which the optimiser does not step."""
        return nullcontext()

    def loader(self, loader: Loader, split: str) -> Loader:
        """This rank's share of a split."""
        return loader

    def idle(self, loader: Loader) -> Iterator[Any]:
        """Batches of an evaluation that this rank puts through the model to keep step with the others, for nothing."""
        return iter(())

    def metric(self, metric: Metric) -> Metric:
        """A metric over what all ranks have seen."""
        return metric

    def before_evaluation(self, model: nn.Module) -> None:
        """Called before a validation or a test of this model."""

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean of each number over the ranks; they all have the same names."""
        return dict(values)

    def agree(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return flag

    def decide(self, flag: bool) -> bool:
        """What rank 0 says."""
        return flag

    def save(self, path: Path, state: dict[str, Any]) -> bool:
        """Write a checkpoint of which every rank has a share; false where rank 0 has all of it."""
        return False

    def gather(self, value: T) -> list[T]:
        """Each rank's value, on all of them."""
        return [value]
