"""Sample order of an epoch, a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from trainyard.checks import boolean, integer, seed_number
from trainyard.errors import ConfigError
from trainyard.rng import generator


class EmptyDataError(ConfigError):
    """The data set has no samples."""


def epoch_order(n: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return a permutation of `0..n-1`: the order of `n` samples in `epoch`."""
    return generator(seed, "order", epoch).permutation(n)


def num_batches(n: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches in an epoch of `n` samples.

    Raises:
        EmptyDataError: `n` is 0.
        ConfigError: `drop_last` drops the only batch, so an epoch would be empty.
    """
    if n < 1:
        raise EmptyDataError("samples", n, "a data set with at least one sample")
    if drop_last and n < batch_size:
        raise ConfigError("batch_size", batch_size, f"at most {n}, the number of samples, because drop_last is true")
    return n // batch_size if drop_last else -(-n // batch_size)


class EpochBatchSampler(Sampler[list[int]]):
    """A `batch_sampler` for `torch.utils.data.DataLoader` whose order depends only on (seed, epoch).

    The sampler can start at any batch of any epoch without additional time:

        >>> sampler = EpochBatchSampler(10, 4, shuffle=False)
        >>> sampler.set_position(epoch=0, start=1)
        >>> list(sampler)
        [[4, 5, 6, 7], [8, 9]]

    Args:
        n: samples in the data set.
        batch_size: samples per batch.
        shuffle: a new order in each epoch; otherwise `0..n-1`.
        drop_last: drop an incomplete last batch.
        seed: the seed of the orders of all epochs.
    """

    def __init__(
        self, n: int, batch_size: int, *, shuffle: bool = True, drop_last: bool = False, seed: int = 0
    ) -> None:
        self.n = integer("n", n, at_least=0)
        self.batch_size = integer("batch_size", batch_size, at_least=1)
        self.shuffle = boolean("shuffle", shuffle)
        self.drop_last = boolean("drop_last", drop_last)
        self.seed = seed_number("seed", seed)
        self.epoch = 0
        self.start = 0
        self._batches = num_batches(n, self.batch_size, drop_last)

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Set the next iteration to `epoch`, from batch number `start` on."""
        self.epoch, self.start = epoch, start

    @property
    def num_samples(self) -> int:
        """Number of samples in a full epoch."""
        return self._batches * self.batch_size if self.drop_last else self.n

    def __len__(self) -> int:
        """Return the number of batches in a full epoch, regardless of where the next iteration starts."""
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        # The position is read now, not at the first batch, so that each of several open iterators keeps its own.
        return self._indices(self.epoch, self.start)

    def _indices(self, epoch: int, start: int) -> Iterator[list[int]]:
        order = epoch_order(self.n, self.seed, epoch) if self.shuffle else np.arange(self.n)
        for first in range(start * self.batch_size, self.num_samples, self.batch_size):
            yield order[first : first + self.batch_size].tolist()
