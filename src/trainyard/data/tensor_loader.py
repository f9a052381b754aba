"""Loader of batches from tensors on the training device.

There are no workers and no collate function: one gather serves many batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from trainyard.checks import boolean, integer, seed_number
from trainyard.data.base import Batch
from trainyard.data.epoch_orders import EpochOrders
from trainyard.data.order import epoch_order, num_batches
from trainyard.data.resident_epoch import ResidentEpoch

# Bytes that one gather fills at most. On a CPU the block should stay in the cache until it is used;
# elsewhere a larger one saves launches.
BLOCK_BYTES_CPU = 1 << 20
BLOCK_BYTES = 1 << 24


class TensorLoader:
    """Yields batches of resident tensors: tuples with a `[B, ...]` tensor per tensor of `tensors`, or dicts.

    A shuffled epoch gathers a block of batches together and yields parts of the block. An unshuffled epoch yields
    slices of the resident tensors, without a copy. Do not change these slices in place.

    Args:
        tensors: `[N, ...]` each; moved to `device` if necessary.
        batch_size: samples per batch.
        shuffle: a new order in each epoch, a function of (seed, epoch).
        drop_last: drop an incomplete last batch.
        seed: the seed of the orders of all epochs.
        device: the device of the tensors and the batches.
        names: names of the tensors, for batches that are dicts `{name: [B, ...]}`; None for tuples.
        rows: the number of indices in an epoch, for a subclass whose `gather` does not use row `i` for index `i`.
            Default: N.

    Attributes:
        placed_order: `order` of an epoch on the device.

    Raises:
        ConfigError: `batch_size` is not an integer of at least 1, or `drop_last` leaves no batch.
        ValueError: the tensors differ in length.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        names: Sequence[str] | None = None,
        rows: int | None = None,
    ) -> None:
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1:
            raise ValueError(f"All tensors must have the same length, but their lengths are {sorted(lengths)}.")
        self.device = torch.device(device)
        self.tensors = tuple(tensor.to(self.device) for tensor in tensors)
        self.names = None if names is None else tuple(names)
        self.batch_size = integer("batch_size", batch_size, at_least=1)
        self.shuffle = boolean("shuffle", shuffle)
        self.drop_last = boolean("drop_last", drop_last)
        self.seed = seed_number("seed", seed)
        self.rows = integer("rows", lengths.pop() if rows is None else rows, at_least=0)
        self._batches = num_batches(self.rows, self.batch_size, drop_last)
        self.placed_order = EpochOrders(self.order, self.device)

    @property
    def num_samples(self) -> int:
        """Number of samples in an epoch."""
        return self._batches * self.batch_size if self.drop_last else self.rows

    @property
    def exact_length(self) -> int | None:
        """Number of batches in every epoch; None for a subclass that creates its batches differently."""
        return self._batches if type(self).batches is TensorLoader.batches else None

    def __len__(self) -> int:
        return self._batches

    def order(self, epoch: int) -> Tensor:
        """Return the indices of a shuffled epoch, int64 `[rows]`, on the CPU. Can be overridden."""
        return torch.from_numpy(epoch_order(self.rows, self.seed, epoch))

    def gather(self, indices: Tensor | slice) -> tuple[Tensor, ...]:
        """Return the samples at `indices` (int64 `[n]` on the device, or a slice) as a batch. Can be overridden."""
        if isinstance(indices, slice):
            return self.from_rows(tuple(tensor[indices] for tensor in self.tensors))
        return self.from_rows(tuple(tensor.index_select(0, indices) for tensor in self.tensors))

    def from_rows(self, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the batch of these rows of the tensors, `[n, ...]` each.

        An override must compute each row separately, without random numbers and without waiting for the device: a
        captured step gathers rows itself and computes this within its graph. Numbers that the override reads from the
        loader keep their values at the capture.
        """
        return rows

    def assembled(self, parts: Iterable[Sequence[Tensor]]) -> Iterator[Batch]:
        """Yield the batches unchanged, or as dicts with the loader's names."""
        names = self.names
        yield from parts if names is None else (dict(zip(names, part, strict=True)) for part in parts)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from batch number `start` on."""
        order = self.placed_order(epoch) if self.shuffle else None
        end = self.num_samples
        step = self.batch_size * self._batches_per_block()
        for first in range(start * self.batch_size, end, step):
            last = min(first + step, end)
            block = self.gather(slice(first, last) if order is None else order[first:last])
            # unsafe_split, since a batch may be changed in place under autograd, which the views of split() forbid.
            parts = zip(*(torch.unsafe_split(tensor, self.batch_size) for tensor in block), strict=True)
            yield from parts if self.names is None else self.assembled(parts)

    def lazy_batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches as `LazyBatch`es, if the epoch is shuffled and `gather` is not overridden."""
        if not self.shuffle or not self.takes_rows:
            return self.batches(epoch, start)
        order = self.placed_order(epoch)
        return ResidentEpoch(order, self.batch_size, self.num_samples, self.tensors, self.from_rows).batches(start)

    @property
    def takes_rows(self) -> bool:
        """Whether a batch is exactly `from_rows` of rows of the tensors, as a tuple."""
        return type(self).gather is TensorLoader.gather and self.names is None

    def _batches_per_block(self) -> int:
        sample = sum(tensor.nbytes for tensor in self.gather(slice(0, 1)))
        limit = BLOCK_BYTES_CPU if self.device.type == "cpu" else BLOCK_BYTES
        return max(1, limit // max(1, sample * self.batch_size))


class ImageLoader(TensorLoader):
    """Yields uint8 images (the first tensor) as float32 in [0, 1]; uint8 needs a quarter of the memory of floats."""

    def from_rows(self, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *rest = rows
        return (images.to(torch.float32).div_(255), *rest)
