"""Seeding of a user's samplers, data sets and workers by (seed, epoch, batch number)."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import count, islice
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from trainyard.errors import Unfusable
from trainyard.rng import derive
from trainyard.rng_state import cpu_states, cpu_states_kept, same, seed_cpu, set_cpu_states

READ_AHEAD = 16


class PositionedSampler(Protocol):
    """A sampler that can start at any batch of any epoch."""

    def set_position(self, epoch: int, start: int = 0) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


class ReplayedSampler(Sampler[Any]):
    """A sampler (or batch sampler) of the user whose random numbers are a function of (seed, epoch).

    At the start of an epoch, `set_epoch` is called and `generator` is seeded if the sampler has them. The sampler runs
    under seeded global generators, whose states are restored afterwards. The items before the start are drawn and
    dropped; no samples are read for them. A sampler with a generator of another kind should seed it in `set_epoch`. The
    sampler is read 16 items at a time.
    """

    def __init__(self, inner: Iterable[Any], seed: int) -> None:
        self.inner = inner
        self.seed = seed
        self.epoch = 0
        self.start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Set the next iteration to `epoch`, from item number `start` on."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return len(cast(Sized, self.inner))

    def __iter__(self) -> Iterator[Any]:
        return self._items(self.epoch, self.start)

    def _items(self, epoch: int, start: int) -> Iterator[Any]:
        seed = derive(self.seed, "sampler", epoch)
        with cpu_states_kept():
            seed_cpu(seed)
            for sampler in (self.inner, getattr(self.inner, "sampler", None)):
                set_epoch(sampler, epoch)
                generator = getattr(sampler, "generator", None)
                if isinstance(generator, torch.Generator):
                    generator.manual_seed(seed)
            items = iter(self.inner)
            for _ in islice(items, start):
                pass
            states = cpu_states()
        while True:
            with cpu_states_kept():
                set_cpu_states(states)
                ahead = list(islice(items, READ_AHEAD))
                states = cpu_states()
            if not ahead:
                return
            yield from ahead


class Request(NamedTuple):
    """A request to a worker: epoch and number of a batch, the keys of its samples (or its single sample), and the
    rank."""

    epoch: int
    number: int
    keys: Any
    rank: int = 0


class NumberedSampler(Sampler[Request]):
    """Adds the epoch and the batch number to the items of a positioned sampler."""

    def __init__(self, inner: PositionedSampler) -> None:
        self.inner = inner
        self.epoch = 0
        self.start = 0

    def set_position(self, epoch: int, start: int = 0) -> None:
        """Set the next iteration to `epoch`, from item number `start` on."""
        self.epoch, self.start = epoch, start
        self.inner.set_position(epoch, start)

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Request]:
        epoch = self.epoch
        return (Request(epoch, number, keys) for number, keys in zip(count(self.start), self.inner, strict=False))


class SeededDataset(Dataset[Any]):
    """Serves requests in a worker: seeds the global generators for the batch, then reads the batch.

    Augmentations (and a `collate_fn`) that draw from `random`, `numpy.random` or `torch` therefore give the same batch,
    regardless of the worker that reads it and of what it read before.
    """

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitems__(self, request: Request) -> Any:
        self._seed_for(request)
        fetch = getattr(self.dataset, "__getitems__", None)
        return fetch(request.keys) if fetch else [self.dataset[key] for key in request.keys]

    def __getitem__(self, request: Request) -> Any:
        self._seed_for(request)
        return self.dataset[request.keys]

    def _seed_for(self, request: Request) -> None:
        rank = (request.rank,) if request.rank else ()  # rank 0 draws what a single process draws
        seed_cpu(derive(self.seed, "worker", request.epoch, request.number, *rank))


class ReadingDraws(Unfusable):
    """Reading the data draws random numbers, which would be the same for all members that share the data."""

    def __init__(self, *_: object) -> None:  # torch raises an error of a worker anew, with a message of its own
        super().__init__("reading the data draws random numbers, which would be equal for all members")


class UndrawnDataset(Dataset[Any]):
    """Data set that must not draw random numbers when it is read.

    Raises:
        ReadingDraws: an access draws random numbers.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        if hasattr(dataset, "__getitems__"):
            self.__getitems__ = self._several

    def __getitem__(self, key: Any) -> Any:
        return self._checked(self.dataset.__getitem__, key)

    def _several(self, keys: Any) -> Any:
        own: Any = self.dataset
        return self._checked(own.__getitems__, keys)

    @staticmethod
    def _checked(read: Callable[[Any], Any], keys: Any) -> Any:
        before = cpu_states()
        found = read(keys)
        if not same(before, cpu_states()):
            raise ReadingDraws
        return found


class SeededStream(IterableDataset[Any]):
    """An iterable data set in workers; an epoch starts by seeding each worker and setting the epoch."""

    def __init__(self, dataset: IterableDataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        # Shared memory, since workers that persist must see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration in every worker."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Any]:
        epoch, worker = int(self._epoch), get_worker_info()
        seed_cpu(derive(self.seed, "worker", epoch, worker.id if worker else 0))
        set_epoch(self.dataset, epoch)
        return iter(self.dataset)


class WorkerInit:
    """The `worker_init_fn` of a loader whose data set is wrapped: the user's function sees the user's data set.

    The worker ignores SIGINT: Ctrl-C signals the entire process group, and the trainer, which ends its run
    cleanly, needs its workers until then. It does not ignore SIGTERM, with which the trainer ends it.

    A worker whose trainer was killed while the worker started ends immediately. Otherwise, torch, which later checks
    whether the parent of a worker has changed, would consider the process that adopted the worker to be the trainer.

    Args:
        inner: the user's function.
        context: the loader's `multiprocessing_context`.
    """

    def __init__(self, inner: Callable[[int], None] | None, context: Any = None) -> None:
        self.inner = inner
        method = (context or multiprocessing).get_start_method(allow_none=True)  # which does not fix the default
        method = method or multiprocessing.get_all_start_methods()[0]
        self.is_child = method != "forkserver"  # the parent is that server, where there is one

    def __call__(self, worker: int) -> None:
        trainer = multiprocessing.parent_process()
        if self.is_child and trainer is not None and trainer.pid != os.getppid():
            os._exit(1)
        info = get_worker_info()
        assert info is not None
        wrapped = info.dataset
        assert isinstance(wrapped, SeededDataset | SeededStream)
        own = wrapped.dataset
        object.__setattr__(info, "dataset", own.dataset if isinstance(own, UndrawnDataset) else own)  # it is frozen
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.inner is not None:
            self.inner(worker)


def set_epoch(part: object, epoch: int) -> None:
    """Pass the epoch to a sampler or data set that has `set_epoch`."""
    tell = getattr(part, "set_epoch", None)
    if callable(tell):
        tell(epoch)
