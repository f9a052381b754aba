"""Loader over a `torch.utils.data.DataLoader`, with a reproducible order, a start at any batch, and batches on the
device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import chain, islice
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    IterDataPipe,
    MapDataPipe,
)

from trainyard.data.base import Batch
from trainyard.data.lengths import ended_early
from trainyard.data.order import EpochBatchSampler
from trainyard.data.positioned import no_length, positioned
from trainyard.data.seeding import (
    NumberedSampler,
    PositionedSampler,
    Request,
    SeededDataset,
    SeededStream,
    UndrawnDataset,
    WorkerInit,
    set_epoch,
)
from trainyard.data.stream_state import FollowedStream, StreamState, has_state
from trainyard.data.transfer import copy_ahead, to_device
from trainyard.rng import derive
from trainyard.rng_state import cpu_states_kept, seed_cpu

log = logging.getLogger(__name__)

T = TypeVar("T")
Wrap = Callable[[PositionedSampler], PositionedSampler]
Finish = Callable[[Any], Any]


class WorkerLoader:
    """Yields a `DataLoader`'s batches on `device`, in an order that is a function of (seed, epoch).

    The given loader is not iterated. A loader with the same data set, workers, collate function, ... is created, so
    that

    - if it shuffles or reads in order, an `EpochBatchSampler` defines the order. A custom sampler is replayed with a
      seed for the epoch. In both cases, a start at batch n reads no earlier sample;
    - with workers, the random numbers of their global generators are a function of (seed, epoch, batch number). Without
      workers, samples are read in this process and draw from its global generators, as other code does;
    - the process's global generators are not used otherwise;
    - on CUDA, batches are copied through pinned memory, and with workers, the next batch is copied while a batch is in
      use.

    An `IterableDataset` cannot start in the middle: a start at batch n reads the first n batches and drops them, unless
    the stream has a state (`stream_state`). The same applies to a loader class with its own `__iter__` or state, and to
    a data pipe. They are used unchanged. The global generators are seeded for the epoch at their start, but their order
    and random numbers are not controlled further. With `in_order=False`, the order varies by design.

    `len()` of a stream or of a custom sampler is a hint: an epoch ends when the loader yields no more batches.

    Args:
        loader: any DataLoader.
        seed: the run's seed.
        device: the device of the batches.
        wrap: see `wrapped`.
        undrawn: see `undrawn`.
        finish: a function from a batch to a batch, called in this process when the batch is on the device.

    Attributes:
        epoch_sampler: the sampler of the batches if the order is that of an `EpochBatchSampler`; otherwise None.
        picks: whether a sampler that can start anywhere selects the samples; false for streams.
        picks_batches: whether this sampler selects batches; false if the samples are batches.
        exact_length: the number of batches in every epoch if the order is that of an `EpochBatchSampler`; otherwise
            None.
        turn: the number of iterations that have been started.

    Raises:
        ConfigError: an epoch has no batch, or a map-style data set that is read in order has no length.
        RuntimeError: with `persistent_workers`, or a stream with a state, an iteration is continued after a newer
            iteration has started.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        seed: int,
        device: torch.device | str,
        wrap: Wrap | None = None,
        undrawn: bool = False,
        finish: Finish | None = None,
    ) -> None:
        self.seed = seed
        self.device = torch.device(device)
        self._given = loader
        self._wrap = wrap
        self._undrawn = undrawn
        self._finish = finish
        self.turn = 0
        # The seed of the workers is drawn from here at each epoch, not from the global generator.
        self._generator = torch.Generator()
        self.exact_length: int | None = None
        self.epoch_sampler: EpochBatchSampler | None = None
        self._loader, self._seek = self._made_like(loader)
        self._state = StreamState(self._loader)
        self._told = False
        self.picks = self._loader is not loader and not isinstance(loader.dataset, IterableDataset)
        self.picks_batches = self.picks and loader.batch_sampler is not None

    def wrapped(self, wrap: Wrap) -> WorkerLoader:
        """Return a loader with the same settings that reads `wrap(sampler)`, if there is a sampler, always in order."""
        return WorkerLoader(self._given, seed=self.seed, device=self.device, wrap=wrap, finish=self._finish)

    def undrawn(self) -> WorkerLoader:
        """Return a loader with the same settings, whose data set raises `ReadingDraws` if it draws random numbers."""
        return WorkerLoader(
            self._given, seed=self.seed, device=self.device, wrap=self._wrap, undrawn=True, finish=self._finish
        )

    @property
    def dataset(self) -> Dataset[Any]:
        """Data set of the given loader."""
        return self._given.dataset

    @property
    def collate(self) -> Callable[[list[Any]], Any]:
        """Function that makes a batch of samples."""
        return self._given.collate_fn

    @property
    def workers(self) -> int:
        """Number of worker processes."""
        return self._given.num_workers

    def reader(self, dataset: SeededDataset, requests: Iterable[Any]) -> DataLoader[Any]:
        """Return a loader with the same worker settings that yields `dataset[request]` for each request, in order."""
        options = self._options(self._given) | {"collate_fn": unchanged, "in_order": True}
        sampler: Any = requests
        return DataLoader(dataset, batch_size=None, sampler=sampler, **options)

    @property
    def samplers(self) -> tuple[object, object]:
        """Sampler of the given loader, and the sampler within its batch sampler."""
        return self._given.sampler, getattr(self._given.batch_sampler, "sampler", None)

    @property
    def stated_batch_size(self) -> int | None:
        """Number of samples in a full batch; None if it is unknown (a batch sampler without `batch_size`)."""
        return self._given.batch_size or getattr(self._given.batch_sampler, "batch_size", None)

    @property
    def batch_size(self) -> int:
        """Number of samples in a full batch; 1 if it is unknown."""
        return int(self.stated_batch_size or 1)

    @property
    def num_samples(self) -> int:
        """Number of samples in an epoch; the length of the data set if the loader has no such number."""
        given = self._given
        drop_last = given.drop_last or getattr(given.batch_sampler, "drop_last", False)
        if drop_last:
            return len(self) * self.batch_size
        stream = isinstance(given.dataset, IterableDataset)
        sampler = given.sampler if given.batch_sampler is None else getattr(given.batch_sampler, "sampler", None)
        return len(cast(Sized, given.dataset if stream or sampler is None else sampler))

    @property
    def one_at_a_time(self) -> bool:
        """Whether a new iteration ends the previous one, because both have the same workers or the same position."""
        return self._given.persistent_workers or bool(self._state)

    def __len__(self) -> int:
        """Return the number of batches in an epoch.

        Raises:
            ConfigError: the data set, or the sampler, has no length.
        """
        try:
            return len(self._given)
        except TypeError:
            raise no_length(self._given) from None

    def batches(self, epoch: int = 0, start: int = 0, state: Any = None) -> Iterator[Batch]:
        """Yield the batches of `epoch` from batch number `start` on.

        Args:
            epoch: counted from 0.
            start: counted from 0.
            state: the result of `stream_state` before that batch; without it, a stream is read from its start.

        Raises:
            TrainyardError: a stream has fewer than `start` batches.
        """
        self.turn += 1
        self._generator.manual_seed(derive(self.seed, "loader", epoch))
        self._state.begin()
        unwanted = self._seek(epoch, start)
        ended = False
        if state is not None:
            ended = self._state.load(state) and start > 0
            unwanted = 0
        as_it_is = self._loader is self._given
        batches: Iterator[Batch]
        if as_it_is or unwanted:
            with cpu_states_kept():
                if as_it_is:
                    seed_cpu(derive(self.seed, "loader", epoch))
                batches = self._skipped(iter(self._loader), unwanted)
                if as_it_is and not start:  # its sampler draws a seed when the first batch is asked for
                    batches = chain(list(islice(batches, 1)), batches)
        else:
            batches = iter(() if ended else self._loader)
        if self._state:
            batches = self._state.followed(batches)
        if self.one_at_a_time:
            batches = self._alone(batches, self.turn)
        return self.on_device(batches)

    @property
    def is_stream(self) -> bool:
        """Whether the data set is a stream."""
        return isinstance(self._given.dataset, IterableDataset)

    @property
    def has_state(self) -> bool:
        """Whether the data has a state, from which a resumed run continues to read it."""
        return bool(self._state)

    @property
    def one_position(self) -> bool:
        """Whether all loaders of this data share one position, so that the data cannot be read twice at a time."""
        given = self._given
        pipe = isinstance(given.dataset, IterDataPipe) and not given.num_workers
        return self.has_state or (self._loader is given and (given.persistent_workers or pipe))

    def stream_state(self) -> Any:
        """Return the state of the stream after the yielded batches, for `batches`; None if the stream has no state."""
        return self._state.take()

    def _skipped(self, batches: Iterator[Batch], count: int) -> Iterator[Batch]:
        """Read and drop `count` batches, and return the rest."""
        if count and not self._told:
            self._told = True
            source: object = self._given.dataset if type(self._given) is DataLoader else self._given
            log.info(
                "%s cannot restore its position. The data is read from the start of the epoch, and the first "
                "%s dropped.",
                type(source).__name__,
                "batch is" if count == 1 else f"{count} batches are",
            )
        dropped = sum(1 for _ in islice(batches, count))
        if dropped < count:
            raise ended_early(dropped, count)
        return batches

    def order(self, epoch: int = 0) -> list[Any] | None:
        """Return the keys (mostly indices) of the samples of `epoch` in the order of the batches; None if unknown."""
        loader = self._loader
        if loader is self._given or isinstance(loader.dataset, IterableDataset):
            return None
        self._seek(epoch, 0)
        given = iter(loader.sampler if loader.batch_sampler is None else loader.batch_sampler)
        keys = [entry.keys if isinstance(entry, Request) else entry for entry in given]
        return [key for entry in keys for key in (entry if isinstance(entry, list) else [entry])]

    def _alone(self, batches: Iterator[Batch], turn: int) -> Iterator[Batch]:
        """Yield the batches of a source that serves one iteration at a time; a newer iteration takes it over."""
        end = object()
        while self.turn == turn:
            batch = next(batches, end)
            if batch is end:
                return
            yield batch
        what = "A loader with persistent_workers" if self._given.persistent_workers else "A stream with a state"
        then = "" if self.one_position else " Use another loader: runner.second_loader() reads the training data."
        raise RuntimeError(f"{what} was iterated again before its epoch ended.{then}")

    def on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the finished batches on the device."""
        batches = self._moved(batches)
        return batches if self._finish is None else map(self._finish, batches)

    def _moved(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        if self.device.type == "cpu":
            return batches
        # Without workers a batch that is read ahead would draw from this process's generators ahead of a checkpoint.
        # A stream's state is that after the batches it has given: none of them may wait.
        if self.device.type == "cuda" and self._given.num_workers > 0 and not self._state:
            return copy_ahead(batches, self.device)
        return (to_device(batch, self.device) for batch in batches)

    def _made_like(self, given: DataLoader[Any]) -> tuple[DataLoader[Any], Callable[[int, int], int]]:
        """Build a loader like `given`, and a function that seeks (epoch, start) and returns the number of batches to
        skip."""
        dataset, workers = given.dataset, given.num_workers > 0
        own = type(given).__iter__ is not DataLoader.__iter__ or has_state(given)
        if own or isinstance(dataset, IterDataPipe | MapDataPipe):

            def tell(epoch: int, start: int) -> int:
                for part in (dataset, given.sampler, given.batch_sampler):
                    set_epoch(part, epoch)
                return start

            return given, tell

        options = self._options(given)
        if isinstance(dataset, IterableDataset):
            stream: IterableDataset[Any] = dataset
            if workers:
                stream = SeededStream(dataset, self.seed)
            elif has_state(dataset):
                stream = FollowedStream(dataset)

            def tell_stream(epoch: int, start: int) -> int:
                set_epoch(stream, epoch)
                return start

            return DataLoader(stream, given.batch_size, drop_last=given.drop_last, **options), tell_stream

        sampler = positioned(given, self.seed)
        if type(sampler) is EpochBatchSampler:
            self.exact_length, self.epoch_sampler = len(sampler), sampler
        if self._undrawn:
            dataset = UndrawnDataset(dataset)
        if workers:
            sampler, dataset = NumberedSampler(sampler), SeededDataset(dataset, self.seed)
        if self._wrap is not None:
            sampler = self._wrap(sampler)
        order = {"batch_size": None, "sampler": sampler} if given.batch_sampler is None else {"batch_sampler": sampler}

        def seek(epoch: int, start: int) -> int:
            sampler.set_position(epoch, start)
            return 0

        return DataLoader(dataset, **order, **options), seek

    def _options(self, given: DataLoader[Any]) -> dict[str, Any]:
        """Return the options of a loader like `given`, besides its data set and its order."""
        options: dict[str, Any] = {
            "num_workers": given.num_workers,
            "collate_fn": given.collate_fn,
            "pin_memory": given.pin_memory or self.device.type == "cuda",
            "timeout": given.timeout,
            "worker_init_fn": WorkerInit(given.worker_init_fn, given.multiprocessing_context)
            if given.num_workers > 0
            else given.worker_init_fn,
            "multiprocessing_context": given.multiprocessing_context,
            "generator": self._generator,
            "prefetch_factor": given.prefetch_factor,
            "persistent_workers": given.persistent_workers,
            "in_order": given.in_order or self._wrap is not None,
        }
        if getattr(given, "pin_memory_device", ""):  # deprecated: naming it warns
            options["pin_memory_device"] = given.pin_memory_device
        return options


def unchanged(batch: T) -> T:
    """Return the batch: a collate function for data sets that yield batches."""
    return batch
