"""Orders of the data of a stack's lanes: the base of loaders whose batches have a leading axis of members."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trainyard.data.base import Batch
from trainyard.data.epoch_orders import EpochOrders

Batches = Callable[[Tensor, int, int], Iterator[Batch]]
"""Function from the members' orders of an epoch, the epoch, and the number of a batch, to the batches from there on."""


class LaneOrders(ABC):
    """Loader of batches `[K, B, ...]` for K members that differ in seed or position.

    Args:
        loader: the single-run loader of any of the members; it has `batch_size`, `num_samples` and a length.
        seeds: one for each member.
        device: the device of the orders.

    Attributes:
        seeds: the seeds of the remaining members.
        ahead: the number of epochs, and of batches within an epoch, by which each member is ahead of the stack.
        length: the number of served batches of an epoch.
        stacked: True: batches have a leading axis of members.
    """

    stacked = True

    def __init__(self, loader: Any, seeds: Sequence[int], device: torch.device) -> None:
        self.loader = loader
        self.seeds = tuple(seeds)
        self.ahead: tuple[tuple[int, int], ...] = ((0, 0),) * len(self.seeds)
        self.length = len(loader)
        self._device = device
        self._orders = EpochOrders(self.order, device)

    @abstractmethod
    def own_order(self, seed: int, epoch: int) -> Tensor:
        """Return the order of an epoch of a member's single run, int64 `[rows]`, on the CPU."""

    @property
    def batch_size(self) -> int:
        """Number of samples in a full batch of one member."""
        size: int = self.loader.batch_size
        return size

    @property
    def one_at_a_time(self) -> bool:
        """Whether a new iteration ends the previous one."""
        return bool(getattr(self.loader, "one_at_a_time", False))

    @property
    def num_samples(self) -> int:
        """Number of samples that one epoch serves to each member."""
        samples: int = self.loader.num_samples
        return samples

    @property
    def exact_length(self) -> int:
        """Number of batches in every epoch."""
        return len(self)

    def __len__(self) -> int:
        """Return the number of batches of one epoch."""
        return len(self.loader)

    def keep(self, index: Tensor) -> None:
        """Keep only the members at `index`, int64, also in epochs that are being served."""
        kept = index.tolist()
        self._hold([self.seeds[k] for k in kept], [self.ahead[k] for k in kept])

    def are_full(self, batches: int) -> bool:
        """Return whether this number of batches at the start of an epoch are full, so that members may be at different
        batches."""
        return batches * self.batch_size <= self.num_samples

    def place(self, ahead: Sequence[tuple[int, int]], seeds: Sequence[int], length: int) -> None:
        """From the next batch on, serve each member the data that is this many epochs and batches ahead of the stack's
        position.

        Args:
            ahead: for each member; batches of at least 1 only if all batches are full.
            seeds: the seeds of their orders.
            length: the number of served batches of an epoch, which is smaller for a part of the data.
        """
        if (tuple(ahead), tuple(seeds), length) != (self.ahead, self.seeds, self.length):
            self.length = length
            self._hold(seeds, ahead)

    def order(self, epoch: int) -> Tensor:
        """Return each member's order of the stack's `epoch`, int64 `[K, rows]`, on the CPU; equal orders are computed
        once."""
        own = list(zip(self.seeds, self.ahead, strict=True))
        rows = {each: row for row, each in enumerate(dict.fromkeys(own))}
        orders = torch.stack([self._order(seed, epoch + epochs, batches) for seed, (epochs, batches) in rows])
        return orders if len(rows) == len(own) else orders[[rows[each] for each in own]]

    def served(self, batches: Batches, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on; restart the iteration when members were cut or
        placed."""
        while start < len(self):
            orders = self._orders
            for batch in batches(orders(epoch), epoch, start):
                yield batch
                start += 1
                if self._orders is not orders:
                    break

    def _hold(self, seeds: Sequence[int], ahead: Sequence[tuple[int, int]]) -> None:
        self.seeds, self.ahead = tuple(seeds), tuple(ahead)
        self._orders = EpochOrders(self.order, self._device)  # what is being made has an order for each member

    def _order(self, seed: int, epoch: int, batches: int) -> Tensor:
        """Return a member's order from batch number `batches` of an epoch on, to the same batch of the next epoch."""
        own = self.own_order(seed, max(epoch, 0))  # what a member has before it joined is not served
        if not batches:
            return own
        begin, end = batches * self.batch_size, self.length * self.batch_size
        return torch.cat([own[begin:end], self.own_order(seed, max(epoch + 1, 0))[:begin], own[end:]])
