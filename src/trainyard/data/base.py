"""Data and loader protocols, which the Runner uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch

from trainyard.checks import integer
from trainyard.errors import ConfigError

Batch: TypeAlias = Any
"""A tuple of tensors, a mapping of tensors, or whatever the user's own DataLoader yields."""

SPLITS = ("train", "val", "test")


def arranged(names: Iterable[str]) -> tuple[str, ...]:
    """Return the splits of these names: training first, then validation sets, then test sets, each in the given order.

    Raises:
        ConfigError: a name is not "train", "val", "test", "val/<name>" or "test/<name>".
    """
    names = list(names)
    for name in names:
        split, slash, own = name.partition("/")
        if split not in SPLITS or (slash and (split == "train" or not own or "/" in own)):
            accepted = "train, val, test, val/<name> or test/<name>"
            accepted += " with a <name> that is not empty and contains no slash" if slash else ""
            raise ConfigError("sources", name, accepted, options=() if slash else SPLITS)
    return tuple(name for split in SPLITS for name in names if name.partition("/")[0] == split)


def size_for_evaluation(given: int | None, batch_size: int) -> int:
    """Return the batch size for validation and test.

    Args:
        given: the size; None for the larger one of `batch_size` and 256.
        batch_size: the batch size of the training.

    Raises:
        ConfigError: the size is not an integer of at least 1.
    """
    size = max(batch_size, 256) if given is None else given
    return integer("eval_batch_size", size, at_least=1, other="null for the default size")


def check_names(key: str, names: Iterable[object]) -> None:
    """Check the names of the sets of one split.

    Raises:
        ConfigError: a name is empty or contains a slash.
    """
    for name in names:
        if not str(name) or "/" in str(name):
            raise ConfigError(key, name, "a non-empty name without a slash for each set")


@runtime_checkable
class Loader(Protocol):
    """The batches of one split, on one device.

    An epoch ends when `batches` ends. As hints for progress bars and schedules, a loader can have `num_samples`, the
    number of samples in an epoch, and `len()`, the number of its batches. If every epoch has the same number of
    batches, the loader can have it as `exact_length`. See `trainyard.data.lengths`.
    """

    @property
    def batch_size(self) -> int:
        """Number of samples in a full batch."""

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from number `start` on, always in the same order; both are counted from 0."""


class Data(ABC):
    """A data set: its properties, and a loader for each split.

    Attributes:
        spec: the values for `auto` in the config of a model; which of them exist depends on the data:
            `in_features: int`, `input_shape: [C, H, W] | [F]`, `in_channels: int`, `image_size: int`,
            `num_classes: int`, `out_features: int` and `loss` (regression: the config of a loss), `vocab_size: int`,
            `context_length: int`.
        splits: the existing splits: "train", "val" and "test"; several validation or test sets are "val/easy",
            "val/hard".
        preprocessor: the config of a module that converts batches to inputs of a model, with statistics of the training
            data; None if there is no preprocessor. The Runner places it before the model's own `data_preprocessor`.
    """

    spec: Mapping[str, Any]
    splits: tuple[str, ...]
    preprocessor: Mapping[str, Any] | None = None

    @abstractmethod
    def loader(self, split: str, *, seed: int, device: torch.device) -> Loader:
        """Return the loader of `split`. Its order depends on `seed` and the epoch; its batches are on `device`."""

    def metainfo(self, split: str) -> Any:
        """Return the `metainfo` of the data set of a split; None if the data set has no `metainfo`."""
        return None

    def baselines(self, split: str) -> dict[str, float]:
        """Return baseline losses on `split`, by name; empty if there are no baselines."""
        return {}
