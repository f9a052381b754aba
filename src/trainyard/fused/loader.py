"""Stacked loader: batches of members that differ in seed, gathered from one copy of the data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from trainyard.data.base import Batch, Loader
from trainyard.data.epoch_orders import EpochOrders
from trainyard.data.lengths import exact_length
from trainyard.data.resident_epoch import ResidentEpoch
from trainyard.data.tensor_loader import TensorLoader
from trainyard.errors import PlacesDiffer, Unfusable

Batches = Callable[[Tensor, int], Iterator[Batch]]
"""Function from the members' orders of an epoch, and the number of a batch, to the batches from there on."""


def stack_loader(loader: Loader, seeds: Sequence[int], *, apart: bool = False) -> Loader:
    """Return the loader that serves members of these seeds.

    Args:
        loader: the single-run loader of the first member.
        seeds: one for each member.
        apart: the members are, or will be, in different epochs.

    Returns:
        `loader` itself if each member would get the same batches: equal seeds in one epoch, or an order that is not
        shuffled. Else a `StackedLoader`, whose batches have a leading axis of members.

    Raises:
        Unfusable: the seeds differ and the data does not lie in memory, or has an order of its own.
        PlacesDiffer: this is so for equal seeds of members that are `apart`.
    """
    if len(set(seeds)) == 1 and not apart:
        return loader
    if len(set(seeds)) == 1 and (not isinstance(loader, TensorLoader) or exact_length(loader) is None):
        raise PlacesDiffer(f"a {type(loader).__name__} reads one epoch of the data for all members")
    if not isinstance(loader, TensorLoader):
        raise Unfusable(
            f"the seeds differ, and a {type(loader).__name__} has one order of the data: members with different "
            f"seeds need in-memory data, without workers"
        )
    if type(loader).batches is not TensorLoader.batches:
        raise Unfusable(f"the seeds differ, and {type(loader).__name__} overrides how batches are created")
    if not loader.shuffle:
        return loader
    if loader.seed != seeds[0]:
        raise Unfusable(f"the seeds differ, and the seed of the {type(loader).__name__} is not the run's")
    return StackedLoader(loader, seeds)


class StackedLoader:
    """Loader of K loaders' batches that differ in seed: a tuple (or dict) of contiguous tensors `[K, B, ...]` each.

    Member k's part is the batch of its single-run loader: the order is that of a shallow copy of the loader with
    the member's seed, the samples are those of `loader.gather`. The data is held once, and one gather serves all
    members, and several batches where they are small.

    Args:
        loader: the single-run loader of any of the members.
        seeds: one for each member.

    Attributes:
        seeds: those of the members that are left.
        ahead: the epochs that each is ahead of the stack's, and the batches within an epoch.
        length: batches of an epoch that are served.
        stacked: True: batches have a leading axis of members.
    """

    stacked = True

    def __init__(self, loader: TensorLoader, seeds: Sequence[int]) -> None:
        self.loader = loader
        self.seeds = tuple(seeds)
        self.ahead: tuple[tuple[int, int], ...] = ((0, 0),) * len(self.seeds)
        self.length = len(loader)
        self._orders = EpochOrders(self.order, loader.device)

    @property
    def batch_size(self) -> int:
        """Number of samples in a full batch of one member."""
        return self.loader.batch_size

    @property
    def num_samples(self) -> int:
        """Number of samples that one epoch serves to each member."""
        return self.loader.num_samples

    @property
    def exact_length(self) -> int:
        """Number of batches in every epoch."""
        return len(self.loader)

    def __len__(self) -> int:
        """Return the number of batches of one epoch."""
        return len(self.loader)

    def keep(self, index: Tensor) -> None:
        """Keep only the members at `index`, int64, also in epochs that are being served."""
        kept = index.tolist()
        self._hold([self.seeds[k] for k in kept], [self.ahead[k] for k in kept])

    def are_full(self, batches: int) -> bool:
        """Return whether the first so many batches of an epoch are full: members may be at different ones of them."""
        return batches * self.batch_size <= self.num_samples

    def place(self, ahead: Sequence[tuple[int, int]], seeds: Sequence[int], length: int) -> None:
        """Serve each member from the next batch on what is so many epochs and batches ahead of the stack's position.

        Args:
            ahead: for each member; batches of 1 or more only where all batches are full.
            seeds: of their orders.
            length: batches of an epoch that are served: fewer than there are for a part of the data.
        """
        if (tuple(ahead), tuple(seeds), length) != (self.ahead, self.seeds, self.length):
            self.length = length
            self._hold(seeds, ahead)

    def _hold(self, seeds: Sequence[int], ahead: Sequence[tuple[int, int]]) -> None:
        self.seeds, self.ahead = tuple(seeds), tuple(ahead)
        self._orders = EpochOrders(self.order, self.loader.device)  # what is being made has an order for each member

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from batch number `start` on."""
        return self._served(self._batches, epoch, start)

    def lazy_batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches as `LazyBatch`es, if the loader takes its batches row by row."""
        return self._served(self._lazy_batches if self.loader.takes_rows else self._batches, epoch, start)

    def _served(self, batches: Batches, epoch: int, start: int) -> Iterator[Batch]:
        while start < len(self):
            orders = self._orders
            for batch in batches(orders(epoch), start):
                yield batch
                start += 1
                if self._orders is not orders:  # members were cut, or placed: the rest is gathered anew
                    break

    def order(self, epoch: int) -> Tensor:
        """Return each member's order of the stack's `epoch`, int64 `[K, rows]`, on the CPU; equals share the work."""
        own = list(zip(self.seeds, self.ahead, strict=True))
        rows = {each: row for row, each in enumerate(dict.fromkeys(own))}
        orders = torch.stack([self._order(seed, epoch + epochs, batches) for seed, (epochs, batches) in rows])
        return orders if len(rows) == len(own) else orders[[rows[each] for each in own]]

    def _order(self, seed: int, epoch: int, batches: int) -> Tensor:
        """Return a member's order from batch number `batches` of an epoch on, to the same batch of the next epoch."""
        loader = self._of(seed)
        own = loader.order(max(epoch, 0))  # what a member has before it joined is not served
        if not batches:
            return own
        begin, end = batches * self.batch_size, self.length * self.batch_size
        return torch.cat([own[begin:end], loader.order(max(epoch + 1, 0))[:begin], own[end:]])

    def _of(self, seed: int) -> TensorLoader:
        solo = copy.copy(self.loader)
        solo.seed = seed
        return solo

    def _batches(self, orders: Tensor, start: int) -> Iterator[Batch]:
        members, size, end = len(orders), self.batch_size, self.num_samples
        step = size * max(1, self.loader._batches_per_block() // members)
        for first in range(start * size, end, step):
            block = orders[:, first : min(first + step, end)]
            # Batch after batch, and within a batch member after member: each batch is a contiguous piece.
            indices = torch.cat([batch.reshape(-1) for batch in torch.split(block, size, 1)])
            gathered = (tensor.contiguous() for tensor in self.loader.gather(indices))
            batches = zip(*(torch.unsafe_split(tensor, members * size) for tensor in gathered), strict=True)
            yield from self.loader.assembled(_of_members(batch, members) for batch in batches)

    def _lazy_batches(self, orders: Tensor, start: int) -> Iterator[tuple[Tensor, ...]]:
        def from_rows(rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return _of_members([part.contiguous() for part in self.loader.from_rows(rows)], len(orders))

        return ResidentEpoch(orders, self.batch_size, self.num_samples, self.loader.tensors, from_rows).batches(start)


def _of_members(parts: Sequence[Tensor], members: int) -> tuple[Tensor, ...]:
    """Return the parts of a batch, the rows of one member after those of another, as `[K, B, ...]` each."""
    return tuple(part.view(members, len(part) // members, *part.shape[1:]) for part in parts)
