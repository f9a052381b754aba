"""WorkerLoader over what can only be read from its beginning: streams, and loaders with an iteration of their own."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from trainyard.data import WorkerLoader
from trainyard.errors import ConfigError


def wrapped(loader: Any, seed: int = 0) -> Any:
    return WorkerLoader(loader, seed=seed, device="cpu")


def values(batches: Any) -> Any:
    return [batch.tolist() for batch in batches]


def flat(batches: Any) -> Any:
    return [value for batch in batches for value in batch.tolist()]


class Stream(IterableDataset[Any]):
    epoch = 0

    def set_epoch(self, epoch: Any) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for value in range(first, 20, step):
            yield torch.tensor([self.epoch, value, torch.randint(1000, ()).item() if info else 0])

    def __len__(self) -> int:
        return 20


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_stream_is_told_its_epoch_and_skipped_by_reading(workers: int, persistent: bool, untouched_rngs: Any) -> None:
    loader = wrapped(DataLoader(Stream(), 4, num_workers=workers, persistent_workers=persistent))
    epochs = [values(loader.batches(epoch)) for epoch in range(2)]
    rows = [row for batch in epochs[1] for row in batch]
    assert sorted(value for _, value, _ in rows) == list(range(20))
    assert {epoch for epoch, _, _ in rows} == {1}
    assert values(loader.batches(1, 2)) == epochs[1][2:]
    assert values(loader.batches(0)) == epochs[0]
    assert (loader.num_samples, loader.batch_size) == (20, 4)


def test_a_stream_without_a_length_has_none() -> None:
    class Unknown(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(torch.arange(9))

    loader = wrapped(DataLoader(Unknown(), 4))
    assert flat(loader.batches()) == list(range(9))
    with pytest.raises(ConfigError, match=r"'Unknown' is invalid. .* __len__"):
        len(loader)


def test_skipping_a_stream_leaves_the_global_generators_alone(untouched_rngs: Any) -> None:
    class Noisy(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            for value in range(8):
                if value < 4:
                    torch.rand(1), random.random(), np.random.rand()
                yield value

    assert flat(wrapped(DataLoader(Noisy(), 2)).batches(0, 2)) == [4, 5, 6, 7]


def test_a_loader_with_its_own_iteration_is_used_as_it_is() -> None:
    class Reversed(DataLoader[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(list(super().__iter__())[::-1])

    loader = wrapped(Reversed(torch.arange(10), 4))
    assert values(loader.batches(0, 1)) == [[4, 5, 6, 7], [0, 1, 2, 3]]
