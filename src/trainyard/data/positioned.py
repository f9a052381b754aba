"""Sampler that can start at any batch, for any `torch.utils.data.DataLoader` with a map-style data set."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any, cast

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from trainyard.data.order import EpochBatchSampler
from trainyard.data.seeding import PositionedSampler, ReplayedSampler
from trainyard.errors import ConfigError


def positioned(loader: DataLoader[Any], seed: int) -> PositionedSampler:
    """Return a sampler that can start anywhere, in place of the sampler or batch sampler of a loader.

    Raises:
        ConfigError: the data set is read in order and has no length.
    """
    batch_sampler = loader.batch_sampler
    if isinstance(batch_sampler, EpochBatchSampler):
        return batch_sampler
    if type(batch_sampler) is BatchSampler:
        sampler = batch_sampler.sampler
        shuffle = _is_permutation(sampler)
        if shuffle or type(sampler) is SequentialSampler:
            try:
                n = len(cast(Sized, sampler))
            except TypeError:
                raise no_length(loader) from None
            batch_size, drop_last = batch_sampler.batch_size, batch_sampler.drop_last
            return EpochBatchSampler(n, batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed)
    return ReplayedSampler(cast(Iterable[Any], loader.sampler if batch_sampler is None else batch_sampler), seed)


def no_length(loader: DataLoader[Any]) -> ConfigError:
    """Return the error for a loader without a length; it names the part on whose missing length the others depend."""
    batches = loader.batch_sampler
    sampler = loader.sampler if batches is None else getattr(batches, "sampler", None)
    source = loader.dataset if isinstance(loader.dataset, IterableDataset) else getattr(sampler, "data_source", None)
    parts: dict[str, object] = {"dataset": source, "sampler": sampler, "batch_sampler": batches, "loader": loader}
    without = [name for name, part in parts.items() if part is not None and not hasattr(part, "__len__")]
    key = without[0] if without else "loader"
    blamed = parts[key]
    return ConfigError(key, type(blamed).__name__, "an object with a length: define __len__ in its class")


def _is_permutation(sampler: object) -> bool:
    """Return whether this is a sampler of `shuffle=True`, which yields each sample once."""
    return (
        type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == len(sampler.data_source)
    )
