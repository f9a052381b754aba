"""Loaders of one of several ranks: its rows of each training batch, and its batches of an evaluation.

Numbers refer to all devices together: `batch_size`, `num_samples`, `len()` and the numbers of batches are the same
on every rank as for a single process. See docs/data.md, "Several devices".
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, Sampler

from trainyard.data.base import Batch, Loader
from trainyard.data.dataloader import WorkerLoader
from trainyard.data.lengths import exact_length
from trainyard.data.limits import FirstBatches
from trainyard.data.seeding import PositionedSampler, Request
from trainyard.data.tensor_loader import TensorLoader
from trainyard.errors import ConfigError, TrainyardError, listed


def rows(n: int, rank: int, world_size: int) -> slice:
    """Return the slice of `n` rows that is this rank's: consecutive parts of `0..n-1`, as equal as possible."""
    least, more = divmod(n, world_size)
    first = rank * least + min(rank, more)
    return slice(first, first + least + (rank < more))


def share_of(loader: Loader, rank: int, world_size: int) -> Share:
    """Return a loader of the batches of `loader` with the rows of this rank only, for training.

    A `TensorLoader` gathers, and a `WorkerLoader` over a map-style data set reads, only these rows. With any other
    loader (an `IterableDataset`, a data pipe, a custom `Loader`), every rank reads complete batches, which must be the
    same on every rank, and keeps its rows.

    Raises:
        ConfigError: a batch has fewer rows than there are ranks, or the sampler distributes to ranks itself.
    """
    _check_sampler(loader)
    size = loader.stated_batch_size if isinstance(loader, WorkerLoader) else loader.batch_size
    if size is not None and size < world_size:
        raise ConfigError(
            "batch_size",
            size,
            f"at least {world_size}: batch_size is the total over all devices, and each device needs a sample",
        )
    if _is_resident(loader):
        return _TensorShare(loader, rank, world_size)
    if isinstance(loader, WorkerLoader) and loader.picks_batches:
        return _PickedShare(loader, rank, world_size)
    return Share(_in_order(loader), rank, world_size)


def turns_of(loader: Loader, rank: int, world_size: int) -> Turns:
    """Return a loader of the complete batches `rank`, `rank + world_size`, … of `loader`, for evaluation.

    The arithmetic of each batch is then that of a single process. If the loader can start at any batch, other batches
    are not read.

    Raises:
        ConfigError: the sampler distributes to ranks itself.
    """
    _check_sampler(loader)
    if _is_resident(loader):
        return _TensorTurns(loader, rank, world_size)
    if isinstance(loader, WorkerLoader) and loader.picks:
        return _PickedTurns(loader, rank, world_size)
    return Turns(_in_order(loader), rank, world_size)


class _OfRank:
    """Base of the loaders of a rank: sizes and order, which are the same for all ranks."""

    def __init__(self, loader: Loader, rank: int, world_size: int) -> None:
        self.loader: Any = loader
        self._own: Any = loader
        self.rank = rank
        self.world_size = world_size

    @property
    def batch_size(self) -> int:
        """Number of samples in a full batch of all ranks together."""
        size: int = self.loader.batch_size
        return size

    @property
    def num_samples(self) -> int:
        """Number of samples that one epoch serves to all ranks together."""
        samples: int = self.loader.num_samples
        return samples

    @property
    def shuffle(self) -> bool:
        """True if samples come in another order than that of the data set, or the loader does not state it."""
        shuffle: bool = getattr(self.loader, "shuffle", True)
        return shuffle

    def order(self, epoch: int = 0) -> Any:
        """Return the order of the samples of all ranks together, or None if the loader does not state it."""
        order = getattr(self.loader, "order", None)
        return None if order is None else order(epoch)

    @property
    def one_at_a_time(self) -> bool:
        """Whether a new iteration ends the previous one."""
        return bool(getattr(self._own, "one_at_a_time", False))

    @property
    def turn(self) -> int:
        """Number of iterations that have been started, if the loader serves one at a time."""
        turn: int = self._own.turn
        return turn

    @property
    def has_state(self) -> bool:
        """Whether the data has a state."""
        return bool(getattr(self.loader, "has_state", False))

    @property
    def one_position(self) -> bool:
        """Whether all loaders of this data share one position."""
        return bool(getattr(self.loader, "one_position", False))

    @property
    def is_stream(self) -> bool:
        """Whether the data set is a stream."""
        return bool(getattr(self.loader, "is_stream", False))

    @property
    def exact_length(self) -> int | None:
        """Number of batches in every epoch, of all ranks together; None if the loader is not certain of it."""
        return exact_length(self.loader)

    def __len__(self) -> int:
        """Return the number of batches of one epoch, of all ranks together."""
        return len(self.loader)


class Share(_OfRank):
    """Rows of one rank, of each batch; this class is for a loader that only serves complete batches.

    Every rank has the same number of batches. If the last batch has fewer rows than there are ranks, a rank without a
    row receives the first row with a weight of 0.

    Attributes:
        weight: the weight of the last yielded batch: its rows on this rank, times the number of ranks, divided by its
            total number of rows. The mean loss over the rows of each rank, multiplied by the weight and averaged over
            the ranks, is the mean over the complete batch.
        size: the total number of rows of this batch.
    """

    weight: float = 1.0
    size: int = 1

    def stream_state(self) -> Any:
        """Return the state of the stream, which every rank reads completely; None if it has none."""
        take = getattr(self.loader, "stream_state", None)
        return None if take is None else take()

    def batches(self, epoch: int = 0, start: int = 0, state: Any = None) -> Iterator[Batch]:
        """Yield this rank's rows of the batches of `epoch` from batch number `start` on; see `WorkerLoader.batches`."""
        batches = self.loader.batches(epoch, start) if state is None else self.loader.batches(epoch, start, state)
        for batch in batches:
            sizes = set(_sizes(batch))
            if len(sizes) != 1:
                lengths = listed(sorted(sizes)) if sizes else "no"
                raise _uncut(batch, f"its tensors have {lengths} rows")
            self.size = size = sizes.pop()
            own, self.weight = _part(size, self.rank, self.world_size)
            yield _cut(batch, own, size)


class _TensorShare(Share):
    """Rows of resident tensors, gathered for many batches in one operation, as `TensorLoader` does."""

    def batches(self, epoch: int = 0, start: int = 0, state: Any = None) -> Iterator[Batch]:
        loader: TensorLoader = self.loader
        size, end = loader.batch_size, loader.num_samples
        order = loader.placed_order(epoch) if loader.shuffle else torch.arange(end, device=loader.device)
        full = end // size
        own, weight = _part(size, self.rank, self.world_size)
        indices = order[: full * size].reshape(full, size)[:, own]
        step = loader._batches_per_block() * self.world_size
        for first in range(start, full, step):
            block = loader.gather(indices[first : first + step].reshape(-1))
            parts = zip(*(torch.unsafe_split(tensor, own.stop - own.start) for tensor in block), strict=True)
            for batch in loader.assembled(parts):
                self.weight, self.size = weight, size
                yield batch
        if start <= full < len(loader):
            self.size = end - full * size
            own, self.weight = _part(self.size, self.rank, self.world_size)
            yield from loader.assembled([loader.gather(order[full * size : end][own])])


class _PickedShare(Share):
    """Samples of a map-style data set: a rank's workers receive only the numbers of its own samples."""

    def __init__(self, loader: WorkerLoader, rank: int, world_size: int) -> None:
        super().__init__(loader, rank, world_size)
        self._sampler = _CutSampler(rank, world_size)
        self._own = loader.wrapped(self._sampler.around)

    def stream_state(self) -> Any:
        """Return None, because a sampler can start anywhere."""
        return None

    def batches(self, epoch: int = 0, start: int = 0, state: Any = None) -> Iterator[Batch]:
        batches = self._own.batches(epoch, start)
        weights = self._sampler.weights
        for batch in batches:
            self.weight, self.size = weights.popleft()
            yield batch


class _RankSampler(Sampler[Any]):
    """Sampler that selects what one rank reads of another sampler.

    It holds no reference to its loader: in a cycle of references workers would outlive their loader.
    """

    inner: PositionedSampler

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.start = 0

    def around(self, inner: PositionedSampler) -> PositionedSampler:
        """Return this sampler around `inner`."""
        self.inner = inner
        return self

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Set the next iteration to `epoch`, from item number `start` on."""
        self.inner.set_position(epoch, start)
        self.start = start

    def __len__(self) -> int:
        return len(self.inner)


class _CutSampler(_RankSampler):
    """Sampler that cuts each batch of keys to those of one rank.

    Attributes:
        weights: weights and sizes of the batches of the latest iteration that were requested but not yet served,
            because workers read ahead.
    """

    weights: deque[tuple[float, int]]

    def __iter__(self) -> Iterator[Any]:
        self.weights = deque()
        return self._items(iter(self.inner), self.weights)

    def _items(self, items: Iterator[Any], weights: deque[tuple[float, int]]) -> Iterator[Any]:
        for item in items:
            keys = list(item.keys if isinstance(item, Request) else item)
            own, weight = _part(len(keys), self.rank, self.world_size)
            weights.append((weight, len(keys)))
            yield item._replace(keys=keys[own], rank=self.rank) if isinstance(item, Request) else keys[own]


class _TurnSampler(_RankSampler):
    """Sampler of the items of one rank.

    Attributes:
        served: the number of items of all ranks, after an iteration has ended.
    """

    served = 0

    def __iter__(self) -> Iterator[Any]:
        return self._items(iter(self.inner), self.start)

    def _items(self, items: Iterator[Any], start: int) -> Iterator[Any]:
        number = start
        for item in items:
            if number % self.world_size == self.rank:
                yield item
            number += 1
        self.served = number - start


def _part(size: int, rank: int, world_size: int) -> tuple[slice, float]:
    """Return the rows of a batch of `size` that a rank trains on, and their weight."""
    own = rows(size, rank, world_size)
    if own.start == own.stop:
        return slice(0, 1), 0.0
    return own, (own.stop - own.start) * world_size / size


class Turns(_OfRank):
    """Complete batches of one rank; this class is for a loader that must read all batches.

    Attributes:
        served: the number of batches of all ranks, from the start on, once `batches` has ended.
    """

    def __init__(self, loader: Loader, rank: int, world_size: int) -> None:
        super().__init__(loader, rank, world_size)
        self.served = 0
        self._idle = False
        self._spare: list[Batch] = []

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch`, from batch number `start` on, whose number modulo the number of ranks is this
        rank."""
        self._idle, self._spare = False, []
        own, batch = 0, None
        for batch in self._turns(epoch, start):
            own += 1
            yield batch
        # Served batches are counted, since the length of a stream in several workers is a guess.
        self._idle = own * self.world_size < self.served
        self._spare = [batch] if own and self._idle else []

    def idle(self) -> Iterator[Batch]:
        """After `batches`, yield an uncounted batch for a forward pass if another rank had one batch more."""
        if self._idle:
            self._idle, spare, self._spare = False, self._spare, []
            yield from spare or islice(self.loader.batches(), 1)

    def _turns(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the batches of this rank; after the last one, `served` is the number of batches of all ranks."""
        self.served = 0
        for number, batch in enumerate(self.loader.batches(epoch, start), start):
            self.served += 1
            if number % self.world_size == self.rank:
                yield batch


class _TensorTurns(Turns):
    """Turns over batches of resident tensors."""

    def _turns(self, epoch: int, start: int) -> Iterator[Batch]:
        loader: TensorLoader = self.loader
        size, end = loader.batch_size, loader.num_samples
        order = loader.placed_order(epoch) if loader.shuffle else None
        wait = (self.rank - start) % self.world_size
        for first in range((start + wait) * size, end, self.world_size * size):
            own = slice(first, min(first + size, end))
            yield from loader.assembled([loader.gather(own if order is None else order[own])])
        self.served = len(loader) - start


class _PickedTurns(Turns):
    """Turns over batches of a map-style data set: the workers of a rank receive only its own batches."""

    def __init__(self, loader: WorkerLoader, rank: int, world_size: int) -> None:
        super().__init__(loader, rank, world_size)
        self._sampler = _TurnSampler(rank, world_size)
        self._own = loader.wrapped(self._sampler.around)

    def _turns(self, epoch: int, start: int) -> Iterator[Batch]:
        yield from self._own.batches(epoch, start)
        self.served = self._sampler.served


def _in_order(loader: Loader) -> Loader:
    """Return a loader of the same batches, in the same order on all ranks."""
    if isinstance(loader, FirstBatches):
        return FirstBatches(_in_order(loader.whole), loader.count, repeat=loader.repeat)
    return loader.wrapped(_as_it_is) if isinstance(loader, WorkerLoader) else loader


def _as_it_is(sampler: PositionedSampler) -> PositionedSampler:
    return sampler


def _is_resident(loader: Loader) -> bool:
    """Return whether its batches are created by `TensorLoader` from `order` and `gather`."""
    return isinstance(loader, TensorLoader) and type(loader).batches is TensorLoader.batches


def _check_sampler(loader: Loader) -> None:
    for sampler in getattr(loader, "samplers", ()):
        if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
            accepted = "a sampler over all samples: the strategy gives each device its share"
            raise ConfigError("sampler", type(sampler).__name__, accepted)


def _sizes(part: Any) -> Iterator[int]:
    """Yield the lengths of the tensors in a batch."""
    if isinstance(part, Tensor | np.ndarray):
        if part.ndim:
            yield len(part)
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from _sizes(value)
    elif isinstance(part, list | tuple) and not hasattr(part, "to"):
        for value in part:
            yield from _sizes(value)
    elif hasattr(part, "to"):
        raise _uncut(part, "this type cannot be split into rows")


def _uncut(part: Any, reason: str) -> TrainyardError:
    return TrainyardError(
        f"An object of type {type(part).__name__} cannot be split among the devices: {reason}. With a map-style data "
        "set, batches are not split: the samples are distributed before they are read."
    )


def _cut(part: Any, own: slice, size: int) -> Any:
    """Return some rows of a batch of `size`; leaves without rows (a number, a flag) stay unchanged."""
    if isinstance(part, Tensor | np.ndarray):
        return part[own] if part.ndim else part
    if isinstance(part, Mapping):
        parts = {key: _cut(value, own, size) for key, value in part.items()}
        if not isinstance(part, MutableMapping):
            return parts
        cut = copy.copy(part)
        cut.update(parts)
        return cut
    if isinstance(part, list | tuple):
        if len(part) == size and not any(True for _ in _sizes(part)):
            return part[own]  # names, or other values that a data set has for each sample
        parts_ = (_cut(value, own, size) for value in part)
        return type(part)(*parts_) if hasattr(part, "_fields") else type(part)(parts_)
    return part
