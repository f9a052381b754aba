"""Lazy batches have what the loader's batches have, and are gathered by a look alone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainyard.batch import samples, target_of
from trainyard.data import ArrayData, ImageLoader, TensorLoader, Text
from trainyard.data.resident_epoch import LazyBatch, ServesLazily
from trainyard.data.transfer import to_device
from trainyard.fused.loader import stack_loader

CPU = torch.device("cpu")


def tensors(n: int) -> Any:
    return torch.randn(n, 2), torch.arange(n)


def same(batch: Any, expected: Any) -> bool:
    return len(batch) == len(expected) and all(
        a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
        for a, b in zip(batch, expected, strict=True)
    )


@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    seeds=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    drop_last=st.booleans(),
    epoch=st.integers(0, 100),
    data=st.data(),
)
def test_any_shape_of_an_epoch(
    n: int, batch_size: int, seeds: list[int], drop_last: bool, epoch: int, data: st.DataObject
) -> None:
    drop_last = drop_last and n >= batch_size
    alone = TensorLoader(tensors(n), batch_size, shuffle=True, drop_last=drop_last, seed=seeds[0])
    loader: Any = stack_loader(alone, seeds)
    start = data.draw(st.integers(0, len(loader)))
    lazy, plain = list(loader.lazy_batches(epoch, start)), list(loader.batches(epoch, start))
    assert len(lazy) == len(plain)
    if not lazy:
        return
    table = lazy[0].epoch.empty_table()
    lazy[0].epoch.fill(table)
    for batch, expected in zip(lazy, plain, strict=True):
        assert isinstance(batch, LazyBatch)
        assert batch.samples == samples([expected[1][0] if len(set(seeds)) > 1 else expected[1]])
        rows = table[batch.number, : batch.epoch.num_rows(batch.number)]
        assert rows.tolist() == expected[1].flatten().tolist()
        assert not batch.is_gathered
        assert same(batch, expected)
        assert batch.is_gathered


def test_every_kind_of_data(tmp_path: Any) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    images = torch.randint(0, 255, (37, 1, 5, 5), dtype=torch.uint8)
    for data in (
        ArrayData({"train": (images, torch.arange(37))}, {}, batch_size=8),
        Text(str(tmp_path / "text.txt"), context_length=9, stride=5, batch_size=8),
    ):
        alone: Any = data.loader("train", seed=2, device=CPU)
        both: list[Any] = [alone, stack_loader(alone, [2, 3, 2])]
        assert all(isinstance(loader, ServesLazily) for loader in both)
        for loader in both:
            for batch, expected in zip(loader.lazy_batches(1), loader.batches(1), strict=True):
                assert type(batch) is LazyBatch
                assert same(batch, expected)


class Noisy(TensorLoader):
    """A user's loader, which draws for all rows that it is asked for at once."""

    def gather(self, indices: Any) -> Any:
        x, y = super().gather(indices)
        return x + torch.randn_like(x), y


class Scaled(TensorLoader):
    def from_rows(self, rows: Any) -> Any:
        x, y = rows
        return 2 * x, y


@pytest.mark.parametrize(("kind", "lazy"), [(TensorLoader, True), (ImageLoader, True), (Noisy, False), (Scaled, True)])
def test_a_gather_of_ones_own_is_called_for_whole_blocks(kind: Any, lazy: bool) -> None:
    alone = kind(tensors(8), 4, shuffle=True)
    for loader in (alone, stack_loader(alone, [0, 1])):
        torch.manual_seed(0)
        found = list(loader.lazy_batches())
        torch.manual_seed(0)
        expected = list(loader.batches())
        assert {type(batch) is LazyBatch for batch in found} == {lazy}
        assert all(same(*both) for both in zip(found, expected, strict=True))
    assert {type(batch) for batch in kind(tensors(8), 4).lazy_batches()} == {tuple}  # slices, which no gather makes


def test_a_lazy_batch_is_a_tuple() -> None:
    loader = TensorLoader(tensors(9), 4, shuffle=True)

    def batch() -> Any:
        return next(loader.lazy_batches())

    ((x, y),) = [next(loader.batches())]
    assert isinstance(batch(), tuple)
    first, second = batch()
    assert same((first, second), (x, y))
    assert same((lambda *parts: parts)(*batch()), (x, y))
    assert same(batch()[:], (x, y))
    assert torch.equal(target_of(batch()), y)
    assert samples(batch()) == 4
    more = (x,)
    assert same(batch() + more, (x, y, x))
    assert same(more + batch(), (x, x, y))
    assert [len(part) for part in reversed(batch())] == [4, 4]
    for other in (to_device(batch(), CPU), copy.copy(batch()), copy.deepcopy(batch()), tuple(batch()), list(batch())):
        assert type(other) in (tuple, list)
        assert same(other, (x, y))
    assert same(pickle.loads(pickle.dumps(batch())), (x, y))
    assert repr(batch()) == repr((x, y))
    looked_at = batch()
    assert looked_at == looked_at
    assert looked_at[0] in looked_at
    assert {looked_at: 1}[looked_at] == 1
    looked_at[0].zero_()
    assert looked_at[0].abs().sum() == 0


def test_members_that_leave_are_not_gathered_any_more() -> None:
    alone = TensorLoader(tensors(40), 4, shuffle=True, seed=4)
    stacked: Any = stack_loader(alone, [4, 5, 6])
    batches, plain = stacked.lazy_batches(3), list(stack_loader(alone, [4, 5, 6]).batches(3))
    assert same(next(batches), plain[0])
    stacked.keep(torch.tensor([2, 0]))
    rest = list(batches)
    assert len(rest) == 9
    for batch, expected in zip(rest, plain[1:], strict=True):
        assert same(batch, [part[[2, 0]] for part in expected])
