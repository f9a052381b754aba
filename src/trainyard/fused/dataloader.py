"""Stacked batches of a DataLoader: the samples of each member from a map-style data set; equal samples are read
once."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from trainyard.data.base import Batch, Loader
from trainyard.data.dataloader import WorkerLoader
from trainyard.data.order import epoch_order
from trainyard.data.seeding import ReadingDraws, SeededDataset
from trainyard.errors import PlacesDiffer, Unfusable
from trainyard.fused.lane_orders import LaneOrders
from trainyard.rng import derive
from trainyard.rng_state import cpu_states, cpu_states_kept, same, seed_cpu


class LaneBatch(NamedTuple):
    """A batch of one member: its seed, its position, and the keys of its samples."""

    seed: int
    epoch: int
    number: int
    keys: tuple[int, ...]


class BatchesDiffer(Unfusable):
    """The batches of the members cannot be stacked."""

    def __init__(self, *_: object) -> None:  # torch raises an error of a worker anew, with a message of its own
        super().__init__("the members' batches differ in structure or shape, or contain something other than tensors")


def stack_dataloader(loader: WorkerLoader, seeds: Sequence[int]) -> Loader:
    """Return the loader that serves members of these seeds, which may be at different positions.

    Args:
        loader: the loader of the first member, whose order is that of an `EpochBatchSampler`.
        seeds: one for each member.

    Raises:
        Unfusable: the seeds differ, and the order of the loader does not depend on the seed of the run.
        PlacesDiffer: the seeds are equal, and the order of the loader does not depend on the seed of the run, or
            reading draws random numbers in this process, alternating with the model.
    """
    sampler = loader.epoch_sampler
    assert sampler is not None
    if not sampler.shuffle:
        return loader.undrawn()
    if sampler.seed != seeds[0]:
        raise other_seed(f"EpochBatchSampler is {sampler.seed}", seeds)
    if len(set(seeds)) == 1 and not loader.workers and _draws(loader.dataset):
        raise PlacesDiffer("reading the data draws random numbers in this process, once for all members")
    return StackedDataLoader(loader, seeds)


def other_seed(given: str, seeds: Sequence[int]) -> Unfusable:
    """Return the error for an order of the data that does not depend on the seed of the run.

    Args:
        given: what has the other seed, and that seed: `EpochBatchSampler is 9`.
        seeds: the seeds of the members. If they are equal, the members can be stacked at the same position.
    """
    reason = f"the seed of the {given}, not the seed {seeds[0]} of the run"
    return PlacesDiffer(reason) if len(set(seeds)) == 1 else Unfusable(f"the seeds differ, and {reason}")


def _draws(dataset: Dataset[Any]) -> bool:
    """Return whether reading a sample draws random numbers."""
    with cpu_states_kept():
        before = cpu_states()
        _read(dataset, [0])
        return not same(before, cpu_states())


class StackedDataLoader(LaneOrders):
    """Loader of batches `[K, B, ...]` for K members with a `WorkerLoader`, which differ in seed or position.

    Member k's part is the batch of its single-run loader. The workers of one loader read the samples of all members; a
    sample that several members need for a batch is read once. If reading draws random numbers, a worker reads the batch
    of each member separately, with the random numbers of its single run.

    Args:
        loader: the single-run loader of any of the members, whose order is that of an `EpochBatchSampler`.
        seeds: one for each member.
    """

    loader: WorkerLoader

    def __init__(self, loader: WorkerLoader, seeds: Sequence[int]) -> None:
        super().__init__(loader, seeds, torch.device("cpu"))
        self._requests = _Requests()
        dataset = LaneBatches(loader.dataset, loader.collate, in_workers=loader.workers > 0)
        self._reader = loader.reader(dataset, self._requests)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` from batch number `start` on."""
        return self.served(self._batches, epoch, start)

    def own_order(self, seed: int, epoch: int) -> Tensor:
        sampler = self.loader.epoch_sampler
        assert sampler is not None
        return torch.from_numpy(epoch_order(sampler.n, seed, epoch) if sampler.shuffle else np.arange(sampler.n))

    def _batches(self, orders: Tensor, epoch: int, start: int) -> Iterator[Batch]:
        self._requests.next = self._wanted(orders, epoch, start, self.seeds, self.ahead, self.length)
        return self.loader.on_device(iter(self._reader))

    def _wanted(
        self,
        orders: Tensor,
        epoch: int,
        start: int,
        seeds: Sequence[int],
        ahead: Sequence[tuple[int, int]],
        length: int,
    ) -> Iterator[list[LaneBatch]]:
        """Yield the requests for the batches of an epoch; workers receive some before they are needed."""
        size = self.batch_size
        for number in range(start, len(self)):
            rows = orders[:, number * size : min((number + 1) * size, self.num_samples)].tolist()
            wanted = []
            for keys, seed, (epochs, batches) in zip(rows, seeds, ahead, strict=True):
                over, own = divmod(number + batches, length) if batches else (0, number)
                wanted.append(LaneBatch(seed, epoch + epochs + over, own, tuple(keys)))
            yield wanted


class _Requests(Iterable[list[LaneBatch]]):
    """Sampler of a loader: the requests of the iteration that starts."""

    def __init__(self) -> None:
        self.next: Iterator[list[LaneBatch]] = iter(())

    def __iter__(self) -> Iterator[list[LaneBatch]]:
        return self.next


class LaneBatches(SeededDataset):
    """Batches of all members, of a map-style data set, as one: `self[wanted]`.

    Args:
        dataset: the data set.
        collate: creates a batch of samples.
        in_workers: whether a worker, whose generators are seeded for each batch, reads the data.
    """

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any], *, in_workers: bool) -> None:
        super().__init__(dataset, seed=0)
        self._collate = collate
        self._in_workers = in_workers
        self._draws = False

    def __getitem__(self, wanted: Any) -> Any:
        """Return the stacked batch.

        Raises:
            ReadingDraws: reading has drawn random numbers in this process, which does not have the generators of each
                member.
            BatchesDiffer: the batches cannot be stacked.
        """
        distinct = list(dict.fromkeys(wanted))
        found: list[Any] | None = None
        if not self._draws:
            if self._in_workers:
                self._seed_as(distinct[0])
            before = cpu_states()
            found = self._together(distinct)
            if not same(before, cpu_states()):
                if not self._in_workers:
                    raise ReadingDraws
                self._draws, found = True, None
        if found is None:
            found = [self._alone(each) for each in distinct]
        own = dict(zip(distinct, found, strict=True))
        return _stacked([own[each] for each in wanted])

    def _seed_as(self, batch: LaneBatch) -> None:
        seed_cpu(derive(batch.seed, "worker", batch.epoch, batch.number))

    def _alone(self, batch: LaneBatch) -> Any:
        """Return a member's batch, with the random numbers of its single run."""
        self._seed_as(batch)
        return self._collate(_read(self.dataset, batch.keys))

    def _together(self, wanted: Sequence[LaneBatch]) -> list[Any]:
        """Return the members' batches; a sample that several need is read once."""
        users = Counter(key for batch in wanted for key in batch.keys)
        keys = list(users)
        samples = _read(self.dataset, keys)
        if not isinstance(samples, list) or len(samples) != len(keys):  # the data set gives whole batches
            return [self._collate(_read(self.dataset, batch.keys)) for batch in wanted]
        known = dict(zip(keys, samples, strict=True))
        copies = self._collate is not default_collate  # another function may change the samples

        def sample(key: int) -> Any:
            return copy.deepcopy(known[key]) if copies and users[key] > 1 else known[key]

        return [self._collate([sample(key) for key in batch.keys]) for batch in wanted]


def _read(dataset: Dataset[Any], keys: Sequence[int]) -> Any:
    fetch = getattr(dataset, "__getitems__", None)
    return fetch(list(keys)) if fetch else [dataset[key] for key in keys]


def _stacked(batches: Sequence[Any]) -> Any:
    """Return batches of equal structure as one, whose tensors are `[K, ...]`.

    Raises:
        BatchesDiffer: the batches cannot be stacked.
    """
    first = batches[0]
    if isinstance(first, Tensor):
        if any(not isinstance(each, Tensor) or each.shape != first.shape for each in batches):
            raise BatchesDiffer
        return torch.stack(list(batches))
    if isinstance(first, Mapping):
        if any(each.keys() != first.keys() for each in batches):
            raise BatchesDiffer
        return {key: _stacked([each[key] for each in batches]) for key in first}
    if isinstance(first, tuple | list):
        if any(len(each) != len(first) for each in batches):
            raise BatchesDiffer
        parts = [_stacked(column) for column in zip(*batches, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    raise BatchesDiffer
