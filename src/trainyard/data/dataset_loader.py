"""Loaders over map-style data sets whose order is that of an `EpochBatchSampler`, and over sources of batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from trainyard.data.base import Batch
from trainyard.data.dataloader import Finish, WorkerLoader, unchanged
from trainyard.data.order import EpochBatchSampler
from trainyard.data.tensor_loader import TensorLoader


class BatchSource(Protocol):
    """Samples that are read as batches."""

    def __len__(self) -> int: ...
    def batch(self, indices: list[int]) -> Batch: ...


def gathered_by_workers(loader: TensorLoader, workers: int, device: torch.device | str) -> WorkerLoader:
    """Return the batches of `loader`, whose tensors are on the CPU, created by worker processes and moved to
    `device`."""
    sampler = EpochBatchSampler(
        loader.rows, loader.batch_size, shuffle=loader.shuffle, drop_last=loader.drop_last, seed=loader.seed
    )
    return dataset_loader(_Gathered(loader), sampler, workers, device, collate_fn=unchanged)


def batch_loader(
    source: BatchSource, sampler: EpochBatchSampler, workers: int, device: torch.device | str, finish: Finish
) -> WorkerLoader:
    """Serve the batches that a source creates itself, like `dataset_loader`; see `WorkerLoader` for `finish`."""
    return dataset_loader(_Batches(source), sampler, workers, device, collate_fn=unchanged, finish=finish)


def dataset_loader(
    dataset: Dataset[Any],
    sampler: EpochBatchSampler,
    workers: int,
    device: torch.device | str,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    finish: Finish | None = None,
) -> WorkerLoader:
    """Serve a map-style data set with `workers` processes that live as long as the loader (0: in this process)."""
    loader = DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate_fn
    )
    return WorkerLoader(loader, seed=sampler.seed, device=device, finish=finish)


class _Gathered(Dataset[Any]):
    def __init__(self, loader: TensorLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return self.loader.rows

    def __getitems__(self, indices: list[int]) -> Any:
        return next(self.loader.assembled([self.loader.gather(torch.tensor(indices))]))


class _Batches(Dataset[Any]):
    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: list[int]) -> Any:
        return self.source.batch(indices)
