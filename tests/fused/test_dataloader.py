"""Members of different seeds read their own batches of one DataLoader, as their single runs do."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from lane_jobs import Config, config, follows, solo
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainyard.data import Loaders, Rings
from trainyard.data.base import Loader
from trainyard.data.dataloader import WorkerLoader
from trainyard.data.order import EpochBatchSampler
from trainyard.data.seeding import ReadingDraws
from trainyard.errors import PlacesDiffer, Unfusable
from trainyard.fused.dataloader import BatchesDiffer, StackedDataLoader
from trainyard.fused.feed import LaneQueue
from trainyard.fused.loader import stack_loader
from trainyard.fused.runner import FusedRunner

CPU = torch.device("cpu")


class Points(Dataset[Any]):
    """Points in the plane, each read by itself, with noise if asked; it counts what is read."""

    def __init__(self, noise: float = 0.0, count: int = 26) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
        self.noise = noise
        self.read: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, key: int) -> tuple[Tensor, int]:
        self.read[key] += 1
        x = self.x[key].clone()
        if self.noise:
            x = x + self.noise * (torch.randn(2, dtype=torch.float64) + random.random() + np.random.rand())
        return x, int(x.norm() > 1.1)


class AsDict(Points):
    """The same as mappings, several at a time."""

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        return [dict(zip("xy", self[key], strict=True)) for key in keys]


def padded(samples: list[tuple[Tensor, int]]) -> dict[str, Any]:
    """A function of a user's that changes its samples."""
    for x, _ in samples:
        x += 1
    return {"x": torch.stack([x for x, _ in samples]), "y": [torch.tensor([y for _, y in samples])]}


def loader(dataset: Dataset[Any], seed: int, **options: Any) -> Loader:
    given = {"batch_size": 4, "shuffle": True} | options
    return Loaders(train=DataLoader(dataset, **given)).loader("train", seed=seed, device=CPU)


def leaves(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, dict) else batch
    return [leaf for part in parts for leaf in leaves(part)]


def assert_fed(stacked: Loader, solos: Sequence[Loader], epoch: int, start: int) -> None:
    own = zip(*(solo.batches(epoch, start) for solo in solos), strict=True)
    count = 0
    for batch, wanted in zip(stacked.batches(epoch, start), own, strict=True):
        for k, expected in enumerate(wanted):
            pairs = zip(leaves(batch), leaves(expected), strict=True)
            assert all(torch.equal(mine[k], its) for mine, its in pairs), (count, k)
        count += 1
    assert count == 7 - start


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Points, {}),
        (Points, {"collate_fn": padded}),
        (AsDict, {}),
        (Points, {"num_workers": 2}),
        (AsDict, {"num_workers": 1, "persistent_workers": True, "collate_fn": torch.utils.data.default_collate}),
    ],
)
def test_each_member_has_the_batches_of_its_single_run(kind: type[Points], options: dict[str, Any]) -> None:
    seeds = [3, 1, 3]
    solos = [loader(kind(), seed, **options) for seed in seeds]
    stacked = stack_loader(loader(kind(), 3, **options), seeds)
    assert isinstance(stacked, StackedDataLoader)
    for epoch, start in ((0, 0), (2, 3)):
        assert_fed(stacked, solos, epoch, start)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_draw_for_each_member(persistent: bool) -> None:
    options = {"num_workers": 2, "persistent_workers": persistent}
    seeds = [0, 5, 0]
    solos = [loader(Points(0.1), seed, **options) for seed in seeds]
    stacked = stack_loader(loader(Points(0.1), 0, **options), seeds)
    for epoch, start in ((0, 0), (1, 5)):
        assert_fed(stacked, solos, epoch, start)


def test_equal_samples_are_read_once() -> None:
    dataset = Points()
    stacked = stack_loader(loader(dataset, 0, batch_size=26), range(8))
    assert len(list(stacked.batches())) == 1
    assert dataset.read == dict.fromkeys(range(26), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_members_at_other_positions_have_the_batches_of_those(workers: int) -> None:
    """Also with the random numbers of these, where workers draw some."""

    def own(seed: int) -> Loader:
        return loader(Points(0.1 * workers, 24), seed, num_workers=workers)

    stacked: Any = stack_loader(own(0), [0, 1, 2])
    stacked.place([(0, 0), (3, 0), (-1, 4)], [0, 1, 2], 6)
    places = [[(1, b) for b in range(6)], [(4, b) for b in range(6)], [(0, 4), (0, 5), *((1, b) for b in range(4))]]
    expected = [
        [next(iter(own(seed).batches(*place))) for place in each] for seed, each in enumerate(places)
    ]  # fmt: skip
    for number, batch in enumerate(stacked.batches(1)):
        for k in range(3):
            assert all(torch.equal(mine[k], its) for mine, its in zip(batch, expected[k][number], strict=True))


def test_built_in_data_with_workers() -> None:
    data = Rings(num_samples=60, batch_size=8, workers=1)
    solos = [data.loader("train", seed=seed, device=CPU) for seed in (0, 1)]
    stacked = stack_loader(data.loader("train", seed=0, device=CPU), [0, 1])
    batches = zip(stacked.batches(1, 2), *(each.batches(1, 2) for each in solos), strict=True)
    for batch, *wanted in batches:
        assert all(torch.equal(mine[k], its) for k in (0, 1) for mine, its in zip(batch, wanted[k], strict=True))


def test_what_cannot_be_stacked() -> None:
    drawing = loader(Points(0.1), 0)
    with pytest.raises(ReadingDraws, match="reading the data draws random numbers"):
        list(stack_loader(drawing, [0, 1]).batches())
    with pytest.raises(PlacesDiffer, match="draws random numbers in this process"):
        stack_loader(drawing, [0, 0], apart=True)
    unshuffled = stack_loader(loader(Points(0.1), 0, shuffle=False, num_workers=1), [0, 1])
    with pytest.raises(ReadingDraws, match=r"^reading the data draws random numbers, which would be equal"):
        list(unshuffled.batches())
    sampler = EpochBatchSampler(26, 4, seed=9)
    given = WorkerLoader(DataLoader(Points(), batch_sampler=sampler), seed=0, device=CPU)
    with pytest.raises(Unfusable, match="the seed of the EpochBatchSampler is 9, not the seed 0 of the run"):
        stack_loader(given, [0, 1])
    with pytest.raises(PlacesDiffer, match=r"^the seed of the EpochBatchSampler is 9, not the seed 0 of the run"):
        stack_loader(given, [0, 0], apart=True)


def ragged(samples: list[tuple[Tensor, int]]) -> Tensor:
    return torch.zeros(1 + sum(y for _, y in samples))


def named(samples: list[tuple[Tensor, int]]) -> dict[str, Any]:
    return {"x": torch.stack([x for x, _ in samples]), "name": "some text"}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("collate", [ragged, named])
def test_batches_that_are_no_stack(collate: Any, workers: int) -> None:
    stacked = stack_loader(loader(Points(), 0, collate_fn=collate, num_workers=workers), [0, 1, 2])
    with pytest.raises(
        BatchesDiffer, match=r"^the members' batches differ in structure or shape, or contain something other"
    ):
        list(stacked.batches())


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def job(seed: int, epochs: int, data: Any) -> Config:
    made = config(seed, epochs, data=data)
    return made | {"model": made["model"] | {"in_features": 2, "num_classes": 2}}


@pytest.mark.parametrize(("workers", "noise"), [(0, 0.0), (1, 0.05)])
def test_members_follow_their_single_runs(double: None, workers: int, noise: float) -> None:
    """Two from the beginning, and one that joins."""

    def data() -> Any:
        train = DataLoader(Points(noise), 6, shuffle=True, num_workers=workers)
        return {"train": train, "val": DataLoader(Points(), 20)}

    lengths = (3, 1, 2)
    queue = LaneQueue([job(2, 2, data())])
    fused = FusedRunner([job(0, 3, data()), job(1, 1, data())], feed=queue)
    fused.train()
    assert not queue.refusals
    for seed, member in enumerate(fused.all_members):
        follows(member, solo(job(seed, lengths[seed], data())))


def test_members_of_different_seeds_cannot_share_draws_of_this_process(double: None) -> None:
    data = {"train": DataLoader(Points(0.1), 6, shuffle=True), "val": DataLoader(Points(), 20)}
    with pytest.raises(Unfusable, match="reading the data draws random numbers"):
        FusedRunner([job(seed, 2, data) for seed in (0, 1)]).train()
