"""Data whose splits are resident tensors or map-style data sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from trainyard.checks import boolean, choice, integer
from trainyard.data.base import Data, Loader, arranged, size_for_evaluation
from trainyard.data.dataset_loader import dataset_loader, gathered_by_workers
from trainyard.data.order import EpochBatchSampler
from trainyard.data.tensor_loader import ImageLoader, TensorLoader

MOST_WORKERS = 256
"""Maximum number of processes for each split; thousands of processes exhaust the memory of a machine."""

Source = Sequence[Tensor] | Mapping[str, Tensor] | Dataset[Any]


class ArrayData(Data):
    """Splits of tensors in memory, on the training device; a `TensorLoader` makes the batches.

    Training data is shuffled in each epoch; validation and test data is read in order.

    Args:
        sources: for each existing split ("train", "val", "test", or "val/easy", "val/hard"), its tensors, `[N, ...]`
            each, the inputs first; or tensors by name, for batches that are dicts; or a map-style torch data set, which
            is read by a `DataLoader`. Inputs of dtype uint8 are images with values 0 to 255; batches contain them as
            float32 in [0, 1].
        spec: see `Data`.
        batch_size: samples per training batch; with `drop_last`, at most the number of training samples.
        eval_batch_size: samples per validation or test batch. Default: the larger of `batch_size` and 256.
        drop_last: drop an incomplete last training batch of an epoch.
        workers: the number of worker processes that create the batches, at most `MOST_WORKERS`; 0: the training process
            creates them, which is much faster for tensors.

    Raises:
        ConfigError: an invalid value.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        spec: Mapping[str, Any],
        *,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        drop_last: bool = False,
        workers: int = 0,
    ) -> None:
        self.sources = dict(sources)
        self.spec = dict(spec)
        self.splits = arranged(sources)
        self.batch_size = integer("batch_size", batch_size, at_least=1)
        self.eval_batch_size = size_for_evaluation(eval_batch_size, self.batch_size)
        self.drop_last = boolean("drop_last", drop_last)
        self.workers = integer("workers", workers, at_least=0, at_most=MOST_WORKERS)
        self._resident: dict[tuple[str, torch.device], tuple[Tensor, ...]] = {}

    def loader(self, split: str, *, seed: int, device: torch.device) -> Loader:
        """Return the loader of `split`; loaders of the same split and device share their tensors."""
        choice("split", split, self.splits)
        source = self.sources[split]
        if isinstance(source, Dataset):
            batch_size, shuffle, drop_last = self._batching(split)
            rows = len(source)  # type: ignore[arg-type]
            sampler = EpochBatchSampler(rows, batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed)
            return dataset_loader(source, sampler, self.workers, device)
        if self.workers:
            host = self.tensor_loader(split, seed=seed, device=torch.device("cpu"))
            return gathered_by_workers(host, self.workers, device)
        return self.tensor_loader(split, seed=seed, device=device)

    def tensor_loader(self, split: str, *, seed: int, device: torch.device) -> TensorLoader:
        """Return the loader of a split of tensors. Override this method to gather differently."""
        tensors = self.resident(split, device)
        batch_size, shuffle, drop_last = self._batching(split)
        kind = ImageLoader if tensors[0].dtype == torch.uint8 else TensorLoader
        source = self.sources[split]
        names = tuple(source) if isinstance(source, Mapping) else None
        return kind(tensors, batch_size, shuffle=shuffle, drop_last=drop_last, seed=seed, device=device, names=names)

    def resident(self, split: str, device: torch.device) -> tuple[Tensor, ...]:
        """Return the tensors of `split` on `device`; they are moved only once."""
        source = self.sources[split]
        assert not isinstance(source, Dataset)
        key = (split, torch.device(device))
        if key not in self._resident:
            tensors = source.values() if isinstance(source, Mapping) else source
            self._resident[key] = tuple(tensor.to(device) for tensor in tensors)
        return self._resident[key]

    def _batching(self, split: str) -> tuple[int, bool, bool]:
        """Return the batch size, shuffle and drop_last of a split."""
        train = split == "train"
        return self.batch_size if train else self.eval_batch_size, train, self.drop_last and train


def input_spec(shape: Sequence[int]) -> dict[str, Any]:
    """Return the entries of `spec` for the shape of one input: `[F]` for features, `[C, H, W]` for an image."""
    spec: dict[str, Any] = {"input_shape": list(shape), "in_features": math.prod(shape)}
    if len(shape) == 3:
        spec["in_channels"] = shape[0]
        if shape[1] == shape[2]:
            spec["image_size"] = shape[1]
    return spec
