"""Data from loaders of the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from trainyard.checks import choice
from trainyard.data.base import SPLITS, Data, Loader, arranged, check_names
from trainyard.data.dataloader import WorkerLoader
from trainyard.errors import ConfigError


class Loaders(Data):
    """One loader per split, each a `torch.utils.data.DataLoader` or a `Loader`.

    A `WorkerLoader` reads a DataLoader: it yields the same batches, in an order that can be replayed, on the training
    device. A `Loader` is used unchanged, with its own seed and device.

        >>> data = Loaders(train=DataLoader(range(10), batch_size=4, shuffle=True))
        >>> data.splits
        ('train',)

    Args:
        train, val, test: the loaders; at least one is required. Several validation (or test) sets have names:
            `{"easy": ..., "hard": ...}`, whose results are `val/easy/accuracy` and so on.
        spec: the values for `auto` in model configs, e.g. `{"num_classes": 10}`; see `Data`.

    Raises:
        ConfigError: no loader was given, a value is neither a DataLoader nor a `Loader`, or a name is invalid.
    """

    def __init__(
        self,
        train: DataLoader[Any] | Loader | None = None,
        val: DataLoader[Any] | Loader | Mapping[str, DataLoader[Any] | Loader | None] | None = None,
        test: DataLoader[Any] | Loader | Mapping[str, DataLoader[Any] | Loader | None] | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        given: dict[str, Any] = {"train": train}
        for split, loaders in (("val", val), ("test", test)):
            if isinstance(loaders, Mapping):
                check_names(split, loaders)
                given |= {f"{split}/{name}": each for name, each in loaders.items()}
            else:
                given[split] = loaders
        self.loaders = {split: loader for split, loader in given.items() if loader is not None}
        if not self.loaders:
            raise ConfigError("train", None, "a loader for at least one of train, val and test")
        for split, loader in self.loaders.items():
            if not isinstance(loader, DataLoader | Loader):
                accepted = ["a torch.utils.data.DataLoader", "an object with batch_size and batches(epoch, start)"]
                accepted += ["a mapping of names to these"] if split in ("val", "test") else []
                accepted += ["null"] if split != "train" else []
                raise ConfigError(split.replace("/", "."), loader, f"{', '.join(accepted[:-1])}, or {accepted[-1]}")
        self.spec = dict(spec or {})
        self.splits = arranged(self.loaders)

    def loader(self, split: str, *, seed: int, device: torch.device) -> Loader:
        """Return the loader of `split`."""
        loader: DataLoader[Any] | Loader = self.loaders[choice("split", split, self.splits)]
        if not isinstance(loader, DataLoader):
            return loader
        try:
            return WorkerLoader(loader, seed=seed, device=device)
        except ConfigError as error:
            raise error.under(split.replace("/", ".")) from None

    def metainfo(self, split: str) -> Any:
        """Return the `metainfo` of the data set of a DataLoader; None if the data set has no `metainfo`."""
        return getattr(getattr(self.loaders[split], "dataset", None), "metainfo", None)


def as_data(data: Data | Mapping[str, Any]) -> Data:
    """Return `data` itself, or the `Loaders` of a mapping `{"train": ..., "val": ..., "test": ...}`.

    Raises:
        ConfigError: `data` is neither of these, or a mapping with other keys. The key of the error is empty, because
            `data` itself is wrong.
    """
    if isinstance(data, Data):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError("", data, "a trainyard.data.Data, or a mapping of train, val and test to loaders")
    accepted = (*SPLITS, "spec")
    for key in data:
        if key not in accepted:
            raise ConfigError("", key, f"one of the keys {', '.join(accepted)}", options=accepted)
    return Loaders(**data)
