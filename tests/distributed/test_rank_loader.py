"""What the ranks are given, put together again, is what one process has."""

from __future__ import annotations

import multiprocessing
import random
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from trainyard.data import EpochBatchSampler, ImageLoader, Loader, TensorLoader, WindowLoader, WorkerLoader
from trainyard.data.array_data import ArrayData
from trainyard.data.limits import limited
from trainyard.distributed.rank_loader import Share, rows, share_of, turns_of
from trainyard.errors import ConfigError, TrainyardError

CPU = torch.device("cpu")
few = settings(max_examples=40)
Make = Callable[[int, int, bool, bool], Loader]  # samples, batch size, shuffle, drop_last


class Numbers(Dataset[Any]):
    """Sample i is `{"x": [i, i + 0.5], "y": i}`; notes what was read."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return {"x": torch.tensor([index, index + 0.5]), "y": index}


class OwnLoader:
    """A `Loader` of the user's own, with names beside the tensors."""

    def __init__(self, n: int, batch_size: int, shuffle: bool, drop_last: bool) -> None:
        self.inner = TensorLoader((torch.arange(n),), batch_size, shuffle=shuffle, drop_last=drop_last, seed=7)
        self.batch_size = batch_size
        self.num_samples = self.inner.num_samples

    def __len__(self) -> int:
        return len(self.inner)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[dict[str, Any]]:
        for (numbers,) in self.inner.batches(epoch, start):
            yield {"x": numbers, "name": [f"sample {i}" for i in numbers.tolist()], "temperature": torch.tensor(0.5)}


def tensors(n: int, batch_size: int, shuffle: bool, drop_last: bool) -> Loader:
    x = torch.arange(3 * n).view(n, 3)
    return TensorLoader((x, torch.arange(n)), batch_size, shuffle=shuffle, drop_last=drop_last, seed=5)


def images(n: int, batch_size: int, shuffle: bool, drop_last: bool) -> Loader:
    x = torch.arange(12 * n).view(n, 1, 3, 4).to(torch.uint8)
    return ImageLoader((x, torch.arange(n)), batch_size, shuffle=shuffle, drop_last=drop_last, seed=5)


def windows(n: int, batch_size: int, shuffle: bool, drop_last: bool) -> Loader:
    stride, length = 3, 4
    tokens = torch.arange(n * stride + length)  # n windows, whatever the phase
    return WindowLoader(tokens, length, stride, batch_size, shuffle=shuffle, drop_last=drop_last, seed=5)


def workers(n: int, batch_size: int, shuffle: bool, drop_last: bool) -> Loader:
    source = DataLoader(Numbers(n), batch_size, shuffle=shuffle, drop_last=drop_last)
    return WorkerLoader(source, seed=5, device=CPU)


def own_sampler(n: int, batch_size: int, shuffle: bool, drop_last: bool) -> Loader:
    weighted = WeightedRandomSampler(torch.arange(1.0, n + 1), n)
    source = DataLoader(Numbers(n), batch_sampler=BatchSampler(weighted, batch_size, drop_last))
    return WorkerLoader(source, seed=5, device=CPU)


class Numbered(IterableDataset[Any]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[Tensor, str]]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        return ((torch.tensor([i, 2 * i]), str(i)) for i in range(first, self.n, step))


def stream(n: int, batch_size: int, shuffle: bool, drop_last: bool) -> Loader:
    return WorkerLoader(DataLoader(Numbered(n), batch_size, drop_last=drop_last), seed=5, device=CPU)


KINDS: dict[str, Make] = {
    "tensors": tensors,
    "images": images,
    "windows": windows,
    "DataLoader": workers,
    "own sampler": own_sampler,
    "stream": stream,
    "own loader": OwnLoader,
}
every = pytest.mark.parametrize("kind", KINDS)


@st.composite
def settled(draw: st.DrawFn, kind: str, least: int = 1) -> tuple[Loader, int]:
    """A loader, and a number of ranks of which each has at least `least` rows of a full batch."""
    world_size = draw(st.integers(1, 5))
    batch_size = draw(st.integers(max(1, world_size * least), 12))
    drop_last = draw(st.booleans())
    n = draw(st.integers(batch_size if drop_last else 1, 40))
    return KINDS[kind](n, batch_size, draw(st.booleans()), drop_last), world_size


def plain(value: Any) -> Any:
    """A batch that can be compared."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def joined(parts: list[Any]) -> Any:
    """The batch whose rows are those of `parts`."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts) if first.ndim else first
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts]) for key in first}
    if isinstance(first[0], str):
        return list(chain(*parts))
    return [joined(list(column)) for column in zip(*parts, strict=True)]


def size(batch: Any) -> int:
    return len(batch["x"] if isinstance(batch, dict) else batch[0])


@given(n=st.integers(0, 200), world_size=st.integers(1, 20))
def test_rows_are_dealt_out_evenly_and_in_order(n: int, world_size: int) -> None:
    parts = [range(n)[rows(n, rank, world_size)] for rank in range(world_size)]
    assert list(chain(*parts)) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# --- training: the ranks' rows


@every
@few
@given(data=st.data(), epoch=st.integers(0, 9))
def test_the_ranks_rows_of_each_batch_are_that_batch(kind: str, data: st.DataObject, epoch: int) -> None:
    loader: Any
    loader, world_size = data.draw(settled(kind))
    count = data.draw(st.none() | st.integers(1, 8))  # the setting `limit`: each rank's first batches
    start = data.draw(st.integers(0, len(loader)))
    shares = [share_of(loader, rank, world_size) for rank in range(world_size)]
    for share in shares:
        assert isinstance(share, Loader)
        assert (share.batch_size, share.num_samples, len(share)) == (
            loader.batch_size,
            loader.num_samples,
            len(loader),
        )
    alone = list(limited(loader, count, "train").batches(epoch, start))
    served = [
        [(batch, share.weight) for batch in limited(share, count, "train").batches(epoch, start)] for share in shares
    ]
    assert [len(batches) for batches in served] == [len(alone)] * world_size
    for whole, *parts in zip(alone, *served, strict=True):
        n = size(whole)
        assert [weight * n for _, weight in parts] == pytest.approx(
            [world_size * len(range(n)[rows(n, rank, world_size)]) for rank in range(world_size)]
        )
        assert sum(weight / world_size for _, weight in parts) == pytest.approx(1)
        assert plain(joined([part for part, weight in parts if weight])) == plain(whole)
        assert all(size(part) == 1 for part, weight in parts if not weight)  # to keep step with the others


@given(
    losses=st.lists(st.floats(-100, 100), min_size=1, max_size=30),
    world_size=st.integers(1, 7),
)
def test_weighted_means_of_the_ranks_average_to_the_mean_of_the_batch(losses: list[float], world_size: int) -> None:
    loader = TensorLoader((torch.tensor(losses, dtype=torch.float64),), 30)
    parts = []
    for rank in range(world_size):
        share = share_of(loader, rank, world_size)
        ((own,),) = share.batches()
        parts.append(share.weight * own.mean())
    assert float(sum(parts) / world_size) == pytest.approx(float(np.mean(losses)), abs=1e-9)


def test_a_world_of_one_has_the_batches_themselves() -> None:
    loader = tensors(10, 4, True, False)
    share = share_of(loader, 0, 1)
    for whole, part in zip(loader.batches(3), share.batches(3), strict=True):
        assert share.weight == 1.0
        assert plain(whole) == plain(part)


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_share_of_a_map_style_data_set_reads_its_own_samples_alone(world_size: int) -> None:
    dataset = Numbers(22)
    loader = WorkerLoader(DataLoader(dataset, 8, shuffle=True), seed=1, device=CPU)
    order = [batch["y"].tolist() for batch in loader.batches(4, 1)]
    for rank in range(world_size):
        dataset.read.clear()
        list(share_of(loader, rank, world_size).batches(4, 1))
        assert dataset.read == [i for batch in order for i in batch[rows(len(batch), rank, world_size)]]


def test_a_share_of_tensors_gathers_its_own_rows_alone_and_many_batches_at_once() -> None:
    asked: list[Tensor] = []

    class Noting(TensorLoader):
        def gather(self, indices: Tensor | slice) -> tuple[Tensor, ...]:
            if isinstance(indices, Tensor):
                asked.append(indices)
            return super().gather(indices)

    loader = Noting((torch.arange(1000),), 10, shuffle=True, seed=2)
    order = loader.order(0).view(100, 10)
    list(share_of(loader, 1, 3).batches(0, 20))
    assert len(asked) == 1
    assert asked[0].tolist() == order[20:, 4:7].reshape(-1).tolist()


def test_blocks_of_a_share_are_cut_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainyard.data.tensor_loader.BLOCK_BYTES_CPU", 160)  # two batches of 10 numbers
    loader = TensorLoader((torch.arange(97),), 10, shuffle=True)
    found = [[part.tolist() for (part,) in share_of(loader, rank, 2).batches(1, 3)] for rank in range(2)]
    alone = [batch.tolist() for (batch,) in loader.batches(1, 3)]
    assert [one + other for one, other in zip(*found, strict=True)] == alone


def test_a_batch_of_a_share_may_be_changed_in_place() -> None:
    values = torch.arange(12.0)
    for (part,) in share_of(TensorLoader((values,), 4), 0, 2).batches():
        part.add_(100).requires_grad_()
    assert values.tolist() == list(range(12))


class Drawn(Numbers):
    """Sample i is i and a number from each of the global generators."""

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


@pytest.mark.parametrize("persistent", [False, True])
def test_ranks_with_workers(persistent: bool) -> None:
    def loader(count: int) -> WorkerLoader:
        source = DataLoader(
            Drawn(23), 5, shuffle=True, num_workers=count, persistent_workers=persistent, in_order=count == 1
        )
        return WorkerLoader(source, seed=3, device=CPU)

    two = loader(2)
    shares = [share_of(two, rank, 3) for rank in range(3)]
    served = [[(batch, share.weight) for batch in share.batches(1)] for share in shares]
    alone = list(loader(1).batches(1))
    for whole, *parts in zip(alone, *served, strict=True):
        assert torch.cat([part for part, _ in parts])[:, 0].tolist() == whole[:, 0].tolist()
        assert [weight for _, weight in parts] == [len(part) * 3 / len(whole) for part, _ in parts]
        assert len({float(value) for part, _ in parts for value in part[:, 1]}) == len(whole)  # draws of its own
    again = share_of(loader(1), 2, 3)
    assert [batch.tolist() for batch in again.batches(1, 2)] == [batch.tolist() for batch, _ in served[2][2:]]
    assert next(iter(again.batches(0))).tolist() != served[2][0][0].tolist()

    turns = [list(turns_of(two, rank, 3).batches(1)) for rank in range(3)]
    assert [[batch.tolist() for batch in own] for own in turns] == [
        [batch.tolist() for batch in alone[rank::3]] for rank in range(3)
    ]  # an evaluation draws what one process draws


@pytest.mark.parametrize("give", [share_of, turns_of])
def test_workers_end_with_their_loader(give: Callable[..., Any]) -> None:
    others = set(multiprocessing.active_children())
    source = DataLoader(Numbers(8), 4, num_workers=1, persistent_workers=True)
    given = give(WorkerLoader(source, seed=0, device=CPU), 0, 2)
    list(given.batches())
    assert set(multiprocessing.active_children()) - others
    del given  # and not when garbage is collected
    assert not set(multiprocessing.active_children()) - others


def test_a_stream_in_workers_has_more_batches_than_it_says() -> None:
    source = DataLoader(Numbered(20), 4, num_workers=2)  # 4 + 4 + 2 of each: 6 batches, where len() says 5
    loader = WorkerLoader(source, seed=0, device=CPU)
    alone = plain(list(loader.batches()))
    assert len(alone) == 6
    parts = [list(share_of(loader, rank, 2).batches()) for rank in range(2)]
    assert [plain(joined(list(both))) for both in zip(*parts, strict=True)] == alone
    turns = [turns_of(loader, rank, 4) for rank in range(4)]
    assert [plain(list(turn.batches())) for turn in turns] == [alone[rank::4] for rank in range(4)]
    assert [len(list(turn.idle())) for turn in turns] == [0, 0, 1, 1]


def test_samples_that_are_batches_are_cut() -> None:
    class Ready(Dataset[Tensor]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Tensor:
            return torch.arange(10 * index, 10 * index + 5)

    loader = WorkerLoader(DataLoader(Ready(), batch_size=None), seed=0, device=CPU)
    shares = [share_of(loader, rank, 2) for rank in range(2)]
    both = list(zip(*(share.batches(0, 1) for share in shares), strict=True))
    assert [torch.cat(parts).tolist() for parts in both] == [list(range(first, first + 5)) for first in (10, 20, 30)]
    assert [share.weight for share in shares] == [1.2, 0.8]
    turns = [[int(batch[0]) for batch in turns_of(loader, rank, 2).batches()] for rank in range(2)]
    assert turns == [[0, 20], [10, 30]]


Pair = namedtuple("Pair", "x y")


def test_batches_of_any_structure_are_cut() -> None:
    x, y = torch.arange(6).view(3, 2), np.arange(3)
    batch = {
        "pair": Pair(x, y),
        "mapping": UserDict(x=x),
        "names": ("a", "b", "c"),
        "two": [x, x],
        "scale": torch.tensor(2.0),
        "word": "abc",
    }

    class One(OwnLoader):
        def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
            yield batch

    (part,) = share_of(One(3, 3, False, False), 1, 2).batches()
    assert part["pair"].x.tolist() == [[4, 5]]
    assert part["pair"].y.tolist() == [2]
    assert isinstance(part["mapping"], UserDict)
    assert part["mapping"]["x"].tolist() == [[4, 5]]
    assert part["names"] == ("c",)
    assert [one.tolist() for one in part["two"]] == [[[4, 5]], [[4, 5]]]
    assert (part["scale"], part["word"]) == (2.0, "abc")


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ((torch.ones(4), torch.ones(3)), "3 and 4 rows"),
        ("names", "no rows"),
        ((pack_sequence([torch.ones(2)]), torch.ones(4)), "PackedSequence cannot be split among the devices"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(batch: Any, match: str) -> None:
    class One(OwnLoader):
        def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
            yield batch

    with pytest.raises(TrainyardError, match=match):
        next(share_of(One(4, 4, False, False), 0, 2).batches())


@every
def test_a_batch_smaller_than_the_world_is_refused(kind: str) -> None:
    loader = KINDS[kind](20, 2, False, False)
    assert isinstance(share_of(loader, 1, 2), Share)
    with pytest.raises(ConfigError, match="at least 3") as caught:
        share_of(loader, 0, 3)
    assert caught.value.key == "batch_size"
    assert len(turns_of(loader, 0, 3)) == 10  # an evaluation may have batches of any size


@pytest.mark.parametrize("given_as", ["sampler", "batch sampler"])
@pytest.mark.parametrize("give", [share_of, turns_of])
def test_a_sampler_that_deals_out_to_ranks_itself_is_refused(give: Callable[..., Any], given_as: str) -> None:
    sampler: DistributedSampler[Any] = DistributedSampler(Numbers(20), num_replicas=2, rank=0)
    options = {"batch_sampler": BatchSampler(sampler, 4, False)} if given_as != "sampler" else {"sampler": sampler}
    source = DataLoader(Numbers(20), **options) if given_as != "sampler" else DataLoader(Numbers(20), 4, **options)
    with pytest.raises(ConfigError, match="DistributedSampler") as caught:
        give(WorkerLoader(source, seed=0, device=CPU), 0, 2)
    assert caught.value.key == "sampler"


@pytest.mark.parametrize("count", [0, 1])
def test_data_that_is_tensors_is_shared_with_workers_as_without(count: int) -> None:
    data = ArrayData({"train": (torch.arange(20).view(10, 2), torch.arange(10))}, {}, batch_size=4, workers=count)
    loader = data.loader("train", seed=1, device=CPU)
    parts = [list(share_of(loader, rank, 2).batches(2)) for rank in range(2)]
    alone = TensorLoader((torch.arange(20).view(10, 2), torch.arange(10)), 4, shuffle=True, seed=1)
    assert [plain(joined(list(both))) for both in zip(*parts, strict=True)] == plain(list(alone.batches(2)))


def test_two_epochs_of_a_share_may_be_open_at_once() -> None:
    share = share_of(workers(10, 4, True, False), 1, 2)
    alone = [plain(list(share.batches(epoch))) for epoch in range(2)]
    both = list(zip(share.batches(0), share.batches(1), strict=True))
    assert [plain([parts[epoch] for parts in both]) for epoch in range(2)] == alone


# --- evaluation: turns


@every
@few
@given(data=st.data(), epoch=st.integers(0, 9))
def test_every_batch_has_its_turn_once_and_all_ranks_run_equally_many(
    kind: str, data: st.DataObject, epoch: int
) -> None:
    loader: Any
    loader, world_size = data.draw(settled(kind, least=0))
    loader = limited(loader, data.draw(st.none() | st.integers(1, 8)), "val")  # of all ranks together
    start = data.draw(st.integers(0, len(loader)))
    ranks = [turns_of(loader, rank, world_size) for rank in range(world_size)]
    alone = plain(list(loader.batches(epoch, start)))
    served = []
    for rank, turns in enumerate(ranks):
        assert isinstance(turns, Loader)
        assert (turns.batch_size, turns.num_samples, len(turns)) == (loader.batch_size, loader.num_samples, len(loader))
        served.append(plain(list(turns.batches(epoch, start))))
        assert served[-1] == [batch for number, batch in enumerate(alone, start) if number % world_size == rank]
    idle = [plain(list(turns.idle())) for turns in ranks]
    assert {len(own) + len(spare) for own, spare in zip(served, idle, strict=True)} == {-(-len(alone) // world_size)}
    first = plain(next(iter(loader.batches())))
    for own, spare in zip(served, idle, strict=True):
        assert spare in ([], own[-1:] or [first])
    assert not any(list(turns.idle()) for turns in ranks)  # only once


def test_turns_read_their_own_samples_alone() -> None:
    dataset = Numbers(22)
    loader = WorkerLoader(DataLoader(dataset, 4), seed=1, device=CPU)
    turns = turns_of(loader, 1, 3)
    assert [batch["y"].tolist() for batch in turns.batches()] == [[4, 5, 6, 7], [16, 17, 18, 19]]
    assert not list(turns.idle())
    assert dataset.read == [*range(4, 8), *range(16, 20)]


def test_turns_of_resident_tensors_are_those_tensors() -> None:
    x = torch.arange(40.0)
    (batch, *_) = turns_of(TensorLoader((x,), 4), 2, 3).batches()
    assert batch[0].data_ptr() == x[8:].data_ptr()  # no copy, as for a process alone


def test_an_evaluation_that_was_left_early_owes_nothing() -> None:
    turns = turns_of(tensors(10, 2, False, False), 1, 2)
    assert not list(turns.idle())
    next(turns.batches())
    assert not list(turns.idle())
    list(turns.batches())
    next(turns.batches())
    assert not list(turns.idle())


def test_a_rank_without_a_batch_runs_the_first_one() -> None:
    dataset = Numbers(3)
    turns = turns_of(WorkerLoader(DataLoader(dataset, 2), seed=1, device=CPU), 2, 3)
    assert not list(turns.batches())
    assert not dataset.read
    (batch,) = turns.idle()
    assert batch["y"].tolist() == [0, 1]


def test_the_order_that_is_told_is_that_of_all_ranks() -> None:
    loader = WorkerLoader(DataLoader(Numbers(9), batch_sampler=EpochBatchSampler(9, 2, seed=4)), seed=0, device=CPU)
    for part in (share_of(loader, 1, 2), turns_of(loader, 1, 2)):
        assert part.order(3) == loader.order(3)
        assert part.shuffle
    resident = turns_of(tensors(9, 2, False, False), 1, 2)
    assert not resident.shuffle
    assert turns_of(OwnLoader(9, 2, True, False), 1, 2).order() is None
