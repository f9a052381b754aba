"""Parts of the data to try a training: the first batches of each split, or the same few batches in every epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from trainyard.checks import integer, is_integer, is_number
from trainyard.data.base import SPLITS, Batch
from trainyard.data.lengths import exact_length, length_hint
from trainyard.errors import ConfigError

KEY = "limit"
KEYS = {split: f"{split}_batches" for split in SPLITS}
ACCEPTED = (
    "an integer of at least 1 (a number of batches), a float above 0 and at most 1.0 (a fraction of the "
    "batches), or null for all batches"
)

Limits = dict[str, int | float]


def parse(given: Any) -> Limits:
    """Return the limits by split: an int is a number of batches, a float a fraction.

    Raises:
        ConfigError: a key is unknown, or a value is neither.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(KEY, given, f"null, or a mapping of {', '.join(KEYS.values())}")
    for key in given:
        if key not in KEYS.values():
            raise ConfigError(KEY, key, f"one of {', '.join(KEYS.values())}", options=[*KEYS.values()])
    found: Limits = {}
    for split, key in KEYS.items():
        value = given.get(key)
        if value is None:
            continue
        if is_integer(value, at_least=1):
            found[split] = int(value)
        elif is_number(value) and not is_integer(value) and 0 < value <= 1:
            found[split] = float(value)
        else:
            raise ConfigError(f"{KEY}.{key}", value, ACCEPTED)
    return found


def batches_to_overfit(given: Any) -> int | None:
    """Return the setting `overfit`; raise ConfigError if it is not a number of batches."""
    return None if given is None else integer("overfit", given, at_least=1, other="null")


class FirstBatches:
    """The first batches of each epoch of a loader. All other attributes are those of the loader.

    Args:
        loader: any loader.
        count: how many batches, at most.
        repeat: serve the batches of the first epoch in every epoch.
    """

    def __init__(self, loader: Any, count: int, *, repeat: bool = False) -> None:
        self.whole = loader
        self.count = count
        self.repeat = repeat

    def __getattr__(self, name: str) -> Any:
        if name == "whole":  # a copy has none yet
            raise AttributeError(name)
        return getattr(self.whole, name)

    @property
    def exact_length(self) -> int | None:
        """Number of batches in every epoch; None if the loader does not know its length."""
        length = exact_length(self.whole)
        return None if length is None else min(length, self.count)

    @property
    def num_samples(self) -> int | None:
        """Number of samples in an epoch, if the loader states it."""
        samples: int | None = getattr(self.whole, "num_samples", None)
        return None if samples is None else min(samples, self.count * self.whole.batch_size)

    def __len__(self) -> int:
        hint = length_hint(self.whole)
        return self.count if hint is None else min(hint, self.count)

    def batches(self, epoch: int = 0, start: int = 0, *state: Any) -> Iterator[Batch]:
        """Yield the batches of `epoch` from number `start` on."""
        return self._first(self.whole.batches(0 if self.repeat else epoch, start, *state), start)

    def lazy_batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches as `lazy_batches` of the loader does."""
        lazy = getattr(self.whole, "lazy_batches", self.whole.batches)
        return self._first(lazy(0 if self.repeat else epoch, start), start)

    def _first(self, batches: Iterator[Batch], start: int) -> Iterator[Batch]:
        return islice(batches, max(0, self.count - start))


def limited(loader: Any, limit: int | float | None, split: str) -> Any:
    """Return a loader of the first batches; the loader itself if there is no limit.

    Raises:
        ConfigError: the limit is a fraction, but the loader states no length.
    """
    if limit is None:
        return loader
    if isinstance(limit, float):
        length = length_hint(loader)
        if length is None:
            hint = "This data has no length, so a fraction cannot be computed."
            key = f"{KEY}.{KEYS[split.partition('/')[0]]}"
            raise ConfigError(key, limit, "null for all batches, or a number of batches", hint=hint)
        limit = max(1, math.ceil(limit * length))
    return FirstBatches(loader, limit)
