"""Data sets made from another data set: repeated, with rare classes oversampled, or only its first samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from trainyard.batch import target_of
from trainyard.checks import integer, number
from trainyard.errors import ConfigError


class _Picked(Dataset[Any]):
    """Samples of another data set, by number; `metainfo` and categories are those of the other data set."""

    def __init__(self, dataset: Any, numbers: Sequence[int]) -> None:
        self.dataset = dataset
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.numbers[index]]

    @property
    def metainfo(self) -> Any:
        """The `metainfo` of the data set; None if it has none."""
        return getattr(self.dataset, "metainfo", None)

    def get_cat_ids(self, index: int) -> list[int]:
        """Return the categories of a sample."""
        return list(categories(self.dataset, self.numbers[index]))


class RepeatDataset(_Picked):
    """A data set that is repeated `times` times within an epoch.

    Args:
        dataset: a data set with a length.
        times: the number of times that each sample is used.

    Raises:
        ConfigError: the data set has no length, or `times` is not an integer of at least 1.
    """

    def __init__(self, dataset: Any, times: int) -> None:
        size = _size(dataset)
        self.times = integer("times", times, at_least=1)
        super().__init__(dataset, [number % size for number in range(self.times * size)])


class ClassBalancedDataset(_Picked):
    """A data set with repeated samples of rare classes (Gupta et al., LVIS, 2019, section 4).

    A class with a fraction `f` of the samples is repeated `max(1, sqrt(oversample_thr / f))` times. A sample is
    repeated as often as the rarest of its classes, rounded up.

    Args:
        dataset: a data set with a length. The classes of a sample are `get_cat_ids(index)`, if the data set has this
            method; otherwise an entry of its `targets` or `labels`; otherwise the target of the sample. In the last
            case, every sample is read once.
        oversample_thr: classes below this fraction are rare, in (0, 1].

    Raises:
        ConfigError: the data set has no length, or the fraction is invalid.
    """

    def __init__(self, dataset: Any, oversample_thr: float) -> None:
        size = _size(dataset)
        self.oversample_thr = number("oversample_thr", oversample_thr, above=0, at_most=1)
        found = [set(categories(dataset, index)) for index in range(size)]
        samples = Counter(category for each in found for category in each)
        factors = {
            category: max(1.0, math.sqrt(self.oversample_thr / (count / size))) for category, count in samples.items()
        }
        often = [math.ceil(max((factors[category] for category in each), default=1.0)) for each in found]
        super().__init__(dataset, [index for index, times in enumerate(often) for _ in range(times)])


class FirstSamples(_Picked):
    """The first `count` samples of a data set, for quick tests; similar to MMEngine's `num_batch_per_epoch`.

    Args:
        dataset: a data set with a length.
        count: the number of samples; all samples if the data set is smaller.

    Raises:
        ConfigError: the data set has no length, or `count` is not an integer of at least 1.
    """

    def __init__(self, dataset: Any, count: int) -> None:
        super().__init__(dataset, range(min(integer("count", count, at_least=1), _size(dataset))))


def categories(dataset: Any, index: int) -> Iterable[int]:
    """Return the classes of a sample; see `ClassBalancedDataset`."""
    if hasattr(dataset, "get_cat_ids"):
        found: Iterable[int] = dataset.get_cat_ids(index)
        return found
    listed = next((getattr(dataset, name) for name in ("targets", "labels") if hasattr(dataset, name)), None)
    target = target_of(dataset[index]) if listed is None else listed[index]
    return [int(number) for number in torch.as_tensor(target).reshape(-1)]


def pseudo_collate(samples: Sequence[Any]) -> Any:
    """Return a batch of lists, for data whose samples have different sizes.

    `DataPreprocessor` stacks the images of this batch. Tuples become a tuple of lists, mappings become a mapping of
    lists, and other samples become one list.

    Example:
        >>> pseudo_collate([("a", 1), ("b", 2)])
        (['a', 'b'], [1, 2])
    """
    first = samples[0]
    if isinstance(first, Mapping):
        return {name: [sample[name] for sample in samples] for name in first}
    if isinstance(first, tuple | list):
        return tuple(list(parts) for parts in zip(*samples, strict=True))
    return list(samples)


def _size(dataset: Any) -> int:
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ConfigError("dataset", type(dataset).__name__, "a map-style data set, with __len__ and __getitem__")
    size = len(dataset)
    if not size:
        raise ConfigError("dataset", type(dataset).__name__, "a data set with at least one sample")
    return size
