"""Work of the sides: a data set, a network, a batch size, a number of epochs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from time import perf_counter, thread_time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

if TYPE_CHECKING:
    from collections.abc import Callable

RATE = 1e-3


@dataclass(frozen=True)
class Work:
    """Training that is the same for all sides.

    Attributes:
        kind: "rings" (an MLP on points), "images" (a small ResNet on 32x32) or "text" (a small transformer).
        samples, batch, epochs: the size of the data set and of a batch, and the number of epochs.
        hidden: widths of the MLP's hidden layers.
        features: numbers per sample of the MLP's data.
        device: the device to train on.
        busy: measure the CPU time of the thread, without the time that it waits, so that other load on the machine
            does not lengthen it.
    """

    kind: str = "rings"
    samples: int = 6400
    batch: int = 64
    epochs: int = 20
    hidden: tuple[int, ...] = (64, 64)
    features: int = 2
    device: str = "cpu"
    busy: bool = False

    @property
    def iterations(self) -> int:
        return self.epochs * -(-self.samples // self.batch)

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets."""
        generator = torch.Generator().manual_seed(0)
        if self.kind == "images":
            images = torch.randn(self.samples, 3, 32, 32, generator=generator)
            return images, torch.randint(10, (self.samples,), generator=generator)
        if self.kind == "text":
            tokens = torch.randint(96, (self.samples, 65), generator=generator)
            return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        labels = torch.arange(self.samples) % 2
        angles = torch.randn(self.samples, self.features, generator=generator)
        points = (0.5 + 0.5 * labels)[:, None] * nn.functional.normalize(angles)
        return points + 0.1 * torch.randn(points.shape, generator=generator), labels

    def net(self) -> nn.Module:
        """Return the network, inputs to logits, with its own random numbers."""
        torch.manual_seed(0)
        if self.kind == "images":
            from trainyard.models import ResNet

            return ResNet(3, 10, depth=8).net
        if self.kind == "text":
            from trainyard.models import Transformer

            return Transformer(vocab_size=96, context_length=64, dim=96, heads=4, layers=2).net
        widths = (self.features, *self.hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(widths[-1], 2))

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return token_loss if self.kind == "text" else nn.functional.cross_entropy

    def loader(self, *, shuffle: bool = True) -> DataLoader[tuple[Tensor, ...]]:
        """Return the DataLoader that a tutorial would use."""
        return DataLoader(TensorDataset(*self.tensors), batch_size=self.batch, shuffle=shuffle)

    def each(self, seconds: float) -> float:
        """Return the microseconds per iteration."""
        return seconds / self.iterations * 1e6

    def now(self) -> float:
        """Return the time in seconds, once the device has finished its work."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        return thread_time() if self.busy else perf_counter()


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy over all positions: `[B, T, V]` and `[B, T]` to a scalar."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), target.flatten())
