"""What the Runner asks of data: a `Data` object makes a `Loader` for each of its splits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch

from trainyard.errors import ConfigError

Batch: TypeAlias = Any
"""A tuple of tensors, a mapping of tensors, or whatever the user's own DataLoader yields."""

SPLITS = ("train", "val", "test")


def arranged(names: Iterable[str]) -> tuple[str, ...]:
    """The splits of these names: training first, then the validation sets, then the test sets, each as they come.

    Raises:
        ConfigError: a name that is none of "train", "val" and "test", nor "val/<name>" or "test/<name>".
    """
    names = list(names)
    for name in names:
        split, slash, own = name.partition("/")
        if split not in SPLITS or (slash and (split == "train" or not own or "/" in own)):
            raise ConfigError("split", name, "train, val, test, val/<name> or test/<name>", options=SPLITS)
    return tuple(name for split in SPLITS for name in names if name.partition("/")[0] == split)


@runtime_checkable
class Loader(Protocol):
    """The batches of one split, on one device."""

    @property
    def batch_size(self) -> int:
        """Samples in a full batch."""

    @property
    def num_samples(self) -> int:
        """Samples that one epoch serves."""

    def __len__(self) -> int:
        """Batches of one epoch."""

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` from batch number `start` on: the same ones each time, nothing before them read."""


class Data(ABC):
    """A data set: facts about it, and a loader for each split.

    Attributes:
        spec: what a model may ask for with the value `auto` in its config, as far as it applies: `in_features: int`,
            `input_shape: [C, H, W] | [F]`, `in_channels: int`, `image_size: int`, `num_classes: int`,
            `out_features: int` (regression), `vocab_size: int`, `context_length: int`.
        splits: which of "train", "val" and "test" there are; several validation or test sets are "val/easy",
            "val/hard".
    """

    spec: Mapping[str, Any]
    splits: tuple[str, ...]

    @abstractmethod
    def loader(self, split: str, *, seed: int, device: torch.device) -> Loader:
        """The loader of `split`. The order of its epochs is a function of `seed`; its batches lie on `device`."""

    def baselines(self, split: str) -> dict[str, float]:
        """Losses that a model has to beat on `split` to have learnt something, by name; empty where none is known."""
        return {}
