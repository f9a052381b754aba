"""Stacked loader: batches of members that differ in seed or position, gathered from one copy of the data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trainyard.data.base import Batch, Loader
from trainyard.data.dataloader import WorkerLoader
from trainyard.data.lengths import exact_length
from trainyard.data.resident_epoch import ResidentEpoch
from trainyard.data.tensor_loader import TensorLoader
from trainyard.errors import PlacesDiffer, Unfusable
from trainyard.fused.dataloader import other_seed, stack_dataloader
from trainyard.fused.lane_orders import LaneOrders


def stack_loader(loader: Loader, seeds: Sequence[int], *, apart: bool = False) -> Loader:
    """Return the loader that serves members of these seeds.

    Args:
        loader: the single-run loader of the first member.
        seeds: one for each member.
        apart: whether the members are, or will be, in different epochs.

    Returns:
        `loader` itself if each member would get the same batches: equal seeds in one epoch, or an order that is not
        shuffled. Otherwise `LaneOrders`, whose batches have a leading axis of members.

    Raises:
        Unfusable: the seeds differ and the order of the data is not a function of the seed.
        PlacesDiffer: the seeds are equal and the members are `apart`, but the loader reads one epoch for all members,
            or the order of the data is not a function of the seed.
    """
    same_seed = len(set(seeds)) == 1
    if same_seed and not apart:
        return loader
    if isinstance(loader, WorkerLoader) and loader.epoch_sampler is not None:
        return stack_dataloader(loader, seeds)
    kind = "DataLoader" if isinstance(loader, WorkerLoader) else type(loader).__name__
    own_batches = isinstance(loader, TensorLoader) and type(loader).batches is not TensorLoader.batches
    if same_seed and (not isinstance(loader, TensorLoader) or own_batches or exact_length(loader) is None):
        raise PlacesDiffer(f"a {kind} reads one epoch of the data for all members")
    if not isinstance(loader, TensorLoader):
        raise Unfusable(
            f"the seeds differ, but this {kind} has only one order of the data. Use data in "
            "memory, or a DataLoader over a map-style data set without a custom sampler"
        )
    if own_batches:
        raise Unfusable(f"the seeds differ, but {type(loader).__name__} overrides how batches are created")
    if not loader.shuffle:
        return loader
    if loader.seed != seeds[0]:
        raise other_seed(f"{type(loader).__name__} is {loader.seed}", seeds)
    return StackedLoader(loader, seeds)


class StackedLoader(LaneOrders):
    """Loader of batches from memory for K members: each batch is a tuple (or dict) of contiguous tensors `[K, B, ...]`.

    Member k's part is the batch of its single-run loader: the order is that of a shallow copy of the loader with
    the member's seed, the samples are those of `loader.gather`. The data is held once. One gather makes the batches of
    all members, or several such batches if they are small.

    Args:
        loader: the single-run loader of any of the members.
        seeds: one for each member.
    """

    loader: TensorLoader

    def __init__(self, loader: TensorLoader, seeds: Sequence[int]) -> None:
        super().__init__(loader, seeds, loader.device)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from batch number `start` on."""
        return self.served(self._batches, epoch, start)

    def lazy_batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches as `LazyBatch`es, if the loader takes its batches row by row."""
        return self.served(self._lazy_batches if self.loader.takes_rows else self._batches, epoch, start)

    def own_order(self, seed: int, epoch: int) -> Tensor:
        solo = copy.copy(self.loader)
        solo.seed = seed
        return solo.order(epoch)

    def _batches(self, orders: Tensor, epoch: int, start: int) -> Iterator[Batch]:
        members, size, end = len(orders), self.batch_size, self.num_samples
        step = size * max(1, self.loader._batches_per_block() // members)
        for first in range(start * size, end, step):
            block = orders[:, first : min(first + step, end)]
            # Batch after batch, and within a batch member after member: each batch is a contiguous piece.
            indices = torch.cat([batch.reshape(-1) for batch in torch.split(block, size, 1)])
            gathered = (tensor.contiguous() for tensor in self.loader.gather(indices))
            batches = zip(*(torch.unsafe_split(tensor, members * size) for tensor in gathered), strict=True)
            yield from self.loader.assembled(_of_members(batch, members) for batch in batches)

    def _lazy_batches(self, orders: Tensor, epoch: int, start: int) -> Iterator[tuple[Tensor, ...]]:
        def from_rows(rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return _of_members([part.contiguous() for part in self.loader.from_rows(rows)], len(orders))

        return ResidentEpoch(orders, self.batch_size, self.num_samples, self.loader.tensors, from_rows).batches(start)


def _of_members(parts: Sequence[Tensor], members: int) -> tuple[Tensor, ...]:
    """Return the parts of a batch, in which the rows are ordered by member, as `[K, B, ...]` each."""
    return tuple(part.view(members, len(part) // members, *part.shape[1:]) for part in parts)
