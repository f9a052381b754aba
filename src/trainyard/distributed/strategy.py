"""Single-device strategy: the interface that the Runner uses, and its implementation for one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trainyard.batch import samples
from trainyard.data import Batch, Loader
from trainyard.metrics import Metric

T = TypeVar("T")


class Strategy:
    """Trains on one device.

    A strategy for several devices (`DDP`, `FSDP`) overrides some methods. Every rank runs the same loops over its share
    of each batch, and the results are the same as on one device.

    Attributes:
        rank: the number of this process, from 0.
        world_size: the number of processes.
        gathers: whether a forward pass needs all ranks.
        own_gradients: whether the gradients of a rank are not yet averaged over the ranks between two steps.
    """

    rank: int = 0
    world_size: int = 1
    gathers: bool = False
    own_gradients: bool = False

    @property
    def is_main(self) -> bool:
        """True if this process writes the journal, the progress, and files that exist once per run."""
        return self.rank == 0

    def begin(self, device: torch.device) -> torch.device:
        """Connect to the other ranks; return the device of this rank, which becomes the current device."""
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        return device

    def end(self) -> None:
        """Disconnect from the other ranks."""

    def place(self, model: nn.Module) -> nn.Module:
        """Return the model in the form in which it is trained; called before the optimizer is built."""
        return model

    def train_step(self, model: nn.Module, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return the function that the optimization step calls with a batch, instead of `step` of the model."""
        return step

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a context for forward and backward of a batch after which the optimizer does not step."""
        return nullcontext()

    def samples(self, batch: Any) -> int:
        """Return the number of samples of a training batch over all ranks together."""
        return samples(batch)

    def loader(self, loader: Loader, split: str) -> Loader:
        """Return this rank's share of a split."""
        return loader

    def train_on(self, loader: Loader) -> None:
        """Weight the losses of training batches by this rank's share of the batches that `loader` serves."""

    def together(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield training batches, whose number is unknown in advance, as long as every rank has a batch."""
        return batches

    def check_served(self, loader: Loader, name: str) -> None:
        """Check after a pass over the evaluation set `name` that all ranks have counted the same batches.

        Raises:
            TrainyardError: the numbers differ.
        """

    def idle(self, loader: Loader) -> Iterator[Any]:
        """Yield evaluation batches that are not counted, so that all ranks make the same number of forward passes."""
        return iter(())

    def metric(self, metric: Metric) -> Metric:
        """Return a metric over the batches of all ranks."""
        return metric

    def before_evaluation(self, model: nn.Module) -> None:
        """Prepare for a validation or a test of this model."""

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean of each number over the ranks; all ranks pass the same names."""
        return dict(values)

    def agree(self, flag: bool) -> bool:
        """Return whether `flag` is true on any rank."""
        return flag

    def decide(self, flag: bool) -> bool:
        """Return the `flag` of rank 0."""
        return flag

    def save(self, path: Path, state: dict[str, Any]) -> bool:
        """Write a checkpoint of which every rank has a part; return false if rank 0 has the complete checkpoint."""
        return False

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, on every rank."""
        return [value]
