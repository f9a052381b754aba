"""Each member is fed the batches of its own solo loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from trainyard.data import ArrayData, Arrays, Data, Digits, Loaders, Rings, Text
from trainyard.data.base import Loader
from trainyard.data.lengths import samples_hint
from trainyard.data.tensor_loader import TensorLoader
from trainyard.errors import PlacesDiffer, Unfusable
from trainyard.fused.loader import StackedLoader, stack_loader

CPU = torch.device("cpu")


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


def assert_fed(stacked: Loader, solos: Sequence[Loader], epoch: int, start: int) -> None:
    """Every batch of the stack is, in each member, the one of its solo loader."""
    count = start
    own = zip(*(solo.batches(epoch, start) for solo in solos), strict=True)
    for batch, wanted in zip(stacked.batches(epoch, start), own, strict=True):
        assert type(batch) is tuple
        for tensor in batch:
            assert tensor.is_contiguous()
            assert len(tensor) == len(solos)
        for k, expected in enumerate(wanted):
            assert same([tensor[k] for tensor in batch], expected), (count, k)
        count += 1
    assert count == max(start, len(stacked))


def loaders(data: Data, seeds: Sequence[int], split: str = "train") -> list[Loader]:
    return [data.loader(split, seed=seed, device=CPU) for seed in seeds]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    np.savez(folder / "floats.npz", x=rng.normal(size=(101, 3)), y=rng.normal(size=101))
    np.savez(folder / "images.npz", x=rng.integers(0, 255, (90, 1, 4, 4)).astype(np.uint8), y=np.arange(90) % 3)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    return folder


def sources(folder: Path, **more: Any) -> dict[str, Data]:
    images = torch.randint(0, 255, (77, 1, 5, 5), dtype=torch.uint8)
    return {
        "digits": Digits(**more),
        "rings": Rings(num_samples=300, **more),
        "arrays": Arrays(str(folder / "floats.npz"), **more),
        "image files": Arrays(str(folder / "images.npz"), **more),
        "bytes": ArrayData({"train": (images, torch.arange(77))}, {}, **more),
        "text": Text(str(folder / "text.txt"), context_length=9, stride=5, **more),
    }


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [16, 50])
def test_every_kind_of_data(folder: Path, batch_size: int, drop_last: bool) -> None:
    seeds = [3, 1, 3, 2**40]
    for data in sources(folder, batch_size=batch_size, drop_last=drop_last).values():
        solos = loaders(data, seeds)
        stacked = stack_loader(solos[0], seeds)
        assert isinstance(stacked, StackedLoader)
        assert isinstance(stacked, Loader)
        assert stacked.stacked
        assert (len(stacked), stacked.batch_size) == (len(solos[0]), batch_size)
        assert samples_hint(stacked) == samples_hint(solos[0])
        for epoch, start in ((0, 0), (7, 0), (1, 2), (1, len(stacked) - 1), (1, len(stacked))):
            assert_fed(stacked, solos, epoch, start)


def test_what_all_members_share_is_the_loader_itself(folder: Path) -> None:
    for data in sources(folder).values():
        train = data.loader("train", seed=5, device=CPU)
        assert stack_loader(train, [5, 5, 5]) is train
        for split in data.splits[1:]:
            loader = data.loader(split, seed=5, device=CPU)
            assert stack_loader(loader, [5, 6, 7]) is loader


def test_a_batch_too_large_for_a_block_and_many_in_one() -> None:
    for shape, n, size in (((40_000,), 21, 4), ((), 5000, 16)):
        tensors = torch.randn(n, *shape), torch.arange(n)
        data = ArrayData({"train": tensors}, {}, batch_size=size)
        assert_fed(stack_loader(loaders(data, [0])[0], [0, 1, 2]), loaders(data, [0, 1, 2]), 4, 1)


@settings(max_examples=60)
@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    seeds=st.lists(st.integers(0, 5), min_size=2, max_size=6).filter(lambda seeds: len(set(seeds)) > 1),
    drop_last=st.booleans(),
    epoch=st.integers(0, 100),
    data=st.data(),
)
def test_any_shape_of_an_epoch(
    n: int, batch_size: int, seeds: list[int], drop_last: bool, epoch: int, data: st.DataObject
) -> None:
    drop_last = drop_last and n >= batch_size
    tensors = torch.randn(n, 2), torch.arange(n)
    whole = ArrayData({"train": tensors}, {}, batch_size=batch_size, drop_last=drop_last)
    solos = loaders(whole, seeds)
    stacked = stack_loader(solos[0], seeds)
    assert_fed(stacked, solos, epoch, data.draw(st.integers(0, len(stacked))))


@pytest.mark.parametrize("batch_size", [2, 64])
def test_keep_reaches_an_epoch_that_is_being_served(batch_size: int) -> None:
    data = Rings(num_samples=600, batch_size=batch_size)
    seeds = [4, 5, 4, 6]
    stacked = stack_loader(loaders(data, seeds)[0], seeds)
    assert isinstance(stacked, StackedLoader)
    batches = stacked.batches(3)
    position = 0
    for left in ([0, 1, 2, 3], [3, 0, 2], [1, 2], [1]):
        stacked.keep(torch.tensor(left))
        seeds = [seeds[k] for k in left]
        assert stacked.seeds == tuple(seeds)
        for _ in range(2 if len(seeds) > 1 else len(stacked) - position):
            batch = next(batches)
            for k, solo in enumerate(loaders(data, seeds)):
                assert same([tensor[k] for tensor in batch], next(solo.batches(3, position)))
            position += 1
    assert next(batches, None) is None
    assert_fed(stacked, loaders(data, seeds), 4, 0)


def test_iterators_do_not_disturb_each_other() -> None:
    data = Rings(num_samples=200, batch_size=32)
    stacked = stack_loader(loaders(data, [0, 1])[0], [0, 1])
    one, other = stacked.batches(0), stacked.batches(1)
    interleaved = [(next(one), next(other)) for _ in range(len(stacked))]
    assert all(same(a, b) for (a, _), b in zip(interleaved, stacked.batches(0), strict=True))
    assert all(same(a, b) for (_, a), b in zip(interleaved, stacked.batches(1), strict=True))


def test_a_batch_may_be_changed_in_place() -> None:
    stacked = stack_loader(loaders(Rings(), [0, 1])[0], [0, 1])
    weight = torch.ones(2, requires_grad=True)
    for x, _ in stacked.batches():
        x.mul_(weight)
        x.sum().backward()
        break
    assert weight.grad is not None


class Reversed(TensorLoader):
    """A user's own order and samples; the samples come as views that are not contiguous."""

    def order(self, epoch: int) -> Tensor:
        return super().order(epoch).flip(0) if self.seed % 2 else super().order(epoch)

    def gather(self, indices: Tensor | slice) -> tuple[Tensor, ...]:
        x, y = super().gather(indices)
        return x.mT, y * 2


def test_order_and_gather_may_be_overridden() -> None:
    tensors = torch.randn(50, 3, 4), torch.arange(50)
    solos = [Reversed(tensors, 8, shuffle=True, seed=seed) for seed in (1, 2, 3)]
    assert_fed(stack_loader(solos[0], [1, 2, 3]), solos, 2, 0)


class Straight(TensorLoader):
    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        yield from super().batches(0, start)


def test_what_cannot_be_stacked() -> None:
    dataset = TensorDataset(torch.randn(20, 2), torch.arange(20))
    sampler = RandomSampler(dataset, replacement=True)
    own = Loaders(train=DataLoader(dataset, batch_size=4, sampler=sampler)).loader("train", seed=0, device=CPU)
    assert stack_loader(own, [0, 0]) is own
    with pytest.raises(Unfusable, match="the seeds differ, but this DataLoader has only one order of the data"):
        stack_loader(own, [0, 1])
    with pytest.raises(Unfusable, match="Straight overrides how batches are created"):
        stack_loader(Straight(dataset.tensors, 4, shuffle=True), [0, 1])
    with pytest.raises(Unfusable, match="the seed of the TensorLoader is 9, not the seed 0 of the run"):
        stack_loader(TensorLoader(dataset.tensors, 4, shuffle=True, seed=9), [0, 1])


def test_members_of_one_seed_can_be_stacked_at_the_same_position_only() -> None:
    tensors = torch.randn(20, 2), torch.arange(20)
    for loader, reason in (
        (Straight(tensors, 4, shuffle=True), "a Straight reads one epoch of the data for all members"),
        (
            TensorLoader(tensors, 4, shuffle=True, seed=9),
            "the seed of the TensorLoader is 9, not the seed 0 of the run",
        ),
    ):
        assert stack_loader(loader, [0, 0]) is loader
        with pytest.raises(PlacesDiffer, match=f"^{reason}$"):
            stack_loader(loader, [0, 0], apart=True)


@pytest.mark.gpu
def test_on_cuda(folder: Path) -> None:
    device = torch.device("cuda")
    for data in sources(folder, batch_size=16).values():
        solos = [data.loader("train", seed=seed, device=device) for seed in (0, 1, 1)]
        assert_fed(stack_loader(solos[0], [0, 1, 1]), solos, 1, 1)
