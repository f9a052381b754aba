"""Streams of any length: what they hold, what they say of their length, and whether they say where they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info

FEATURES, CLASSES = 4, 3


def sample(number: int, noise: Tensor | float = 0.0) -> tuple[Tensor, int]:
    """Sample number n, which shows in its first feature."""
    x = torch.full((FEATURES,), 0.0)
    x[0] = number
    x[1:] = torch.sin(torch.arange(1, FEATURES) * (number + 1.0)) + noise
    return x, number % CLASSES


class Stream(IterableDataset[Any]):
    """Samples `0..n-1`, shared out to the workers by their number; noise is drawn from torch's global generator.

    Args:
        n: the number of samples; None never ends.
        said: what it states as its length; None states none.
        noisy: whether there is noise.
    """

    def __init__(self, n: int | None, said: int | None = None, *, noisy: bool = False) -> None:
        self.n = n
        self.said = said
        self.noisy = noisy

    def __len__(self) -> int:
        if self.said is None:
            raise TypeError("no length")
        return self.said

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        number, step = (info.id, info.num_workers) if info else (0, 1)
        while self.n is None or number < self.n:
            yield sample(number, 0.1 * torch.randn(()) if self.noisy else 0.0)
            number += step


class StatefulStream(Stream):
    """A stream that says where it is. Its order is drawn anew each time, from a generator that is its own.

    Attributes:
        read: the number of samples that were read.
    """

    def __init__(self, n: int, said: int | None = None, *, noisy: bool = False) -> None:
        super().__init__(n, said, noisy=noisy)
        self.generator = torch.Generator().manual_seed(7)
        self.order: list[int] = []
        self.at = 0
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        assert self.n is not None
        if not self.order:
            self.order = torch.randperm(self.n, generator=self.generator).tolist()
        while self.at < len(self.order):
            number = self.order[self.at]
            self.at += 1
            self.read += 1
            yield sample(number, 0.1 * torch.randn(()) if self.noisy else 0.0)
        self.order, self.at = [], 0

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "at": self.at, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.at = state["order"], state["at"]
        self.generator.set_state(state["generator"])


class StatefulLoader(DataLoader[Any]):
    """A loader that says where it is, as torchdata's does: by the batches that it has given."""

    given = 0
    begin = 0

    def __iter__(self) -> Any:
        begin, self.begin = self.begin, 0
        batches = super().__iter__()
        for _ in range(begin):
            next(batches)
        self.given = begin
        return self._counted(batches)

    def _counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            self.given += 1
            yield batch
        self.given = 0

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin = state["given"]


class Buckets(Sampler[list[int]]):
    """Batches of at most `cap` tokens, in an order that each epoch draws: their number changes by epoch."""

    def __init__(self, lengths: list[int], cap: int = 24) -> None:
        self.lengths, self.cap, self.epoch = lengths, cap, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def _made(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.epoch)
        batches: list[list[int]] = [[]]
        for index in torch.randperm(len(self.lengths), generator=generator).tolist():
            if batches[-1] and sum(self.lengths[i] for i in batches[-1]) + self.lengths[index] > self.cap:
                batches.append([])
            batches[-1].append(index)
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._made())

    def __len__(self) -> int:
        return len(self._made())
