"""Loaders whose real number of batches is not what they say, or changes from epoch to epoch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

CLASSES = 3
FEATURES = 4


@dataclass(frozen=True)
class Plan:
    """Plan of a loader.

    Attributes:
        kind: `stream` (samples as they come), `sharded` (a stream that workers share), `batches` (a batch sampler) or
            `stateful` (a loader that only its own `state_dict` can continue).
        counts: the samples of epoch e are `counts[e % len(counts)]`; for `batches` these are batches.
        said: what `len` of the data set (of the sampler) returns; None: it has no length.
        batch: samples in a batch.
        workers: processes that read.
        drop_last: leave out what does not fill a batch, in each worker.
    """

    kind: str
    counts: tuple[int, ...]
    said: int | None
    batch: int
    workers: int
    drop_last: bool

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def drawn(random: Random) -> Plan:
    """Draw a plan whose every epoch has a batch."""
    kind = random.choice(("stream", "sharded", "batches", "stateful"))
    batch = random.randint(2, 5)
    workers = {"stream": random.choice((0, 0, 1)), "sharded": random.randint(1, 3), "stateful": 0}.get(
        kind, random.choice((0, 0, 2))
    )
    least = batch * max(workers, 1)  # with drop_last each worker is to fill a batch
    counts = tuple(random.randint(least, least + 20) for _ in range(random.choice((1, 1, 3))))
    said = random.choice((None, counts[0], max(1, counts[0] // 2), 2 * counts[0] + 1, counts[0] + 1))
    return Plan(kind, counts, said, batch, workers, kind != "batches" and random.random() < 0.3)


def loader_of(plan: Plan) -> DataLoader[Any]:
    """Return a new loader of a plan; torch's own, or a class over it."""
    if plan.kind == "batches":
        return DataLoader(Samples(), batch_sampler=Batches(plan), num_workers=plan.workers)  # type: ignore[arg-type]
    if plan.kind == "stateful":
        return Stateful(plan)
    stream = Stream(plan) if plan.said is None else SizedStream(plan)
    return DataLoader(stream, plan.batch, num_workers=plan.workers, drop_last=plan.drop_last)


def set_epoch(loader: DataLoader[Any], epoch: int) -> None:
    """Tell the data set or the sampler of a loader which epoch comes next, as a training does."""
    for part in (loader.dataset, loader.batch_sampler):
        tell = getattr(part, "set_epoch", None)
        if tell is not None:
            tell(epoch)


def sample(number: int) -> tuple[Tensor, int]:
    """Return the sample of a number: its features, of which the first tells the number, and its class."""
    return torch.sin(torch.arange(FEATURES) * number) + torch.tensor(
        [number, *[0.0] * (FEATURES - 1)]
    ), number % CLASSES


def numbers(batch: Any) -> list[int]:
    """Return the numbers of the samples of a batch."""
    return [round(value) for value in batch[0][:, 0].tolist()]


class Samples(Dataset[Any]):
    """Samples that are picked by a sampler."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, number: int) -> Any:
        return sample(number)


class Stream(IterableDataset[Any]):
    """Stream of a plan's samples, without a length; other ones each epoch."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info() if self.plan.kind == "sharded" else None
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(first, self.plan.counts[self.epoch % len(self.plan.counts)], step):
            yield sample(100 * (self.epoch % 9) + index)


class SizedStream(Stream):
    """The same stream, with a length that need not be true."""

    def __len__(self) -> int:
        assert self.plan.said is not None
        return self.plan.said


class Batches:
    """Batch sampler that yields another number of batches each epoch."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epoch = 0
        self.batch_size = plan.batch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        if self.plan.said is None:
            raise TypeError("this sampler has no length")
        return self.plan.said

    def __iter__(self) -> Iterator[Sequence[int]]:
        for index in range(self.plan.counts[self.epoch % len(self.plan.counts)]):
            size = 1 + (index + self.epoch) % self.plan.batch
            yield [(7 * index + 31 * self.epoch + each) % 1000 for each in range(size)]


class Stateful(DataLoader[Any]):
    """Loader whose order depends on all epochs before, so that only its own state continues it.

    It keeps to the protocol of torchdata's StatefulDataLoader: `state_dict` says where the iteration that is under way
    stands, `load_state_dict` lets the next one go on from there.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(Samples(), plan.batch, drop_last=plan.drop_last)
        self.plan = plan
        self._epoch = 0
        self._at = 0
        self._order: list[int] = []
        self._mix = 12345
        self._goes_on = False

    def __len__(self) -> int:
        if self.plan.said is None:
            raise TypeError("this loader has no length")
        return -(-self.plan.said // self.plan.batch)

    def __iter__(self) -> Any:
        if not self._goes_on:
            self._mix = (self._mix * 1103515245 + 12345) % 2**31
            count = self.plan.counts[self._epoch % len(self.plan.counts)]
            self._order = Random(self._mix).sample(range(1000), count)
            self._at = 0
        self._goes_on = False
        size = self.plan.batch
        while self._at < len(self._order):
            picked = self._order[self._at : self._at + size]
            self._at += size
            if len(picked) < size and self.plan.drop_last:
                break
            assert self.collate_fn is not None
            yield self.collate_fn([sample(number) for number in picked])
        self._epoch += 1
        self._order = []

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "at": self._at, "order": list(self._order), "mix": self._mix}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epoch, self._at, self._mix = state["epoch"], state["at"], state["mix"]
        self._order = list(state["order"])
        self._goes_on = bool(self._order)
