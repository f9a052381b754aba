"""WorkerLoader: any DataLoader, in an order that can be replayed."""

import random
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from trainyard.data import EpochBatchSampler, Loader, WorkerLoader, epoch_order
from trainyard.errors import ConfigError

N = 50


class Numbers(Dataset[Any]):
    """Sample i is i; notes what was read."""

    def __init__(self, n: Any = N) -> None:
        self.n = n
        self.read: list[Any] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: Any) -> Any:
        self.read.append(index)
        return torch.tensor(index)


class Augmented(Numbers):
    """Sample i is i and a number from each of the global generators."""

    def __getitem__(self, index: Any) -> Any:
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


class AugmentedAtOnce(Augmented):
    def __getitems__(self, indices: Any) -> Any:
        noise = torch.rand(len(indices)).tolist()
        return [torch.tensor([index, extra]) for index, extra in zip(indices, noise, strict=True)]


def noisy_collate(samples: Any) -> Any:
    return torch.stack(samples) + np.random.rand()


def wrapped(loader: Any, seed: int = 0) -> Any:
    return WorkerLoader(loader, seed=seed, device="cpu")


def values(batches: Any) -> Any:
    return [batch.tolist() for batch in batches]


def flat(batches: Any) -> Any:
    return [value for batch in batches for value in batch.tolist()]


# --- the ordinary samplers


@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 25),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    epoch=st.integers(0, 50),
    data=st.data(),
)
@settings(max_examples=50)
def test_order_and_start_without_workers(
    n: int, batch_size: int, drop_last: bool, shuffle: bool, epoch: int, data: st.DataObject
) -> None:
    if drop_last:
        batch_size = min(batch_size, n)
    dataset = Numbers(n)
    loader = wrapped(DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=drop_last), seed=9)
    whole = values(loader.batches(epoch))
    order = epoch_order(n, 9, epoch).tolist() if shuffle else list(range(n))
    assert list(chain(*whole)) == order[: loader.num_samples]
    assert (len(whole), loader.batch_size) == (len(loader), batch_size)

    start = data.draw(st.integers(0, len(whole)))
    dataset.read.clear()
    assert values(loader.batches(epoch, start)) == whole[start:]
    assert dataset.read == list(chain(*whole[start:]))  # and no sample before it


@pytest.mark.parametrize("dataset", [Augmented(), AugmentedAtOnce()], ids=["single", "at once"])
@pytest.mark.parametrize("persistent", [False, True])
def test_augmentation_in_workers_is_a_function_of_the_batch(
    dataset: Any, persistent: bool, untouched_rngs: Any
) -> None:
    source = DataLoader(
        dataset, 8, shuffle=True, num_workers=2, persistent_workers=persistent, collate_fn=noisy_collate
    )
    loader = wrapped(source, seed=3)
    epochs = {epoch: values(loader.batches(epoch)) for epoch in (0, 1)}
    # the collate function adds less than one to the index
    assert [int(row[0]) for batch in epochs[1] for row in batch] == epoch_order(N, 3, 1).tolist()
    assert epochs[0] != epochs[1]
    assert values(loader.batches(1, 3)) == epochs[1][3:]
    assert values(loader.batches(0, 5)) == epochs[0][5:]
    noise = {row[1] for batches in epochs.values() for batch in batches for row in batch}
    assert len(noise) == 2 * N  # every sample has its own

    other_workers = DataLoader(dataset, 8, shuffle=True, num_workers=1, collate_fn=noisy_collate)
    assert values(wrapped(other_workers, seed=3).batches(1)) == epochs[1]
    assert values(wrapped(other_workers, seed=4).batches(1)) != epochs[1]


def test_order_and_start_with_workers() -> None:
    source = DataLoader(Numbers(), 4, shuffle=True, num_workers=2, persistent_workers=True)
    loader = wrapped(source, seed=2)

    @given(epoch=st.integers(0, 9), start=st.integers(0, 13))
    @settings(max_examples=15)
    def check(epoch: int, start: int) -> None:
        assert flat(loader.batches(epoch, start)) == epoch_order(N, 2, epoch)[4 * start :].tolist()

    check()


def test_persistent_workers_survive_an_epoch_that_was_left_early() -> None:
    loader = wrapped(DataLoader(Numbers(), 4, shuffle=True, num_workers=2, persistent_workers=True))
    batches = loader.batches(0)
    next(batches), next(batches)
    assert flat(loader.batches(1)) == epoch_order(N, 0, 1).tolist()


def test_persistent_workers_refuse_two_epochs_at_once() -> None:
    loader = wrapped(DataLoader(Numbers(), 4, num_workers=1, persistent_workers=True))
    first = loader.batches(0)
    next(first)
    second = loader.batches(1)
    assert next(second).tolist() == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="before its epoch ended"):
        next(first)
    assert flat(second) == list(range(4, N))


@pytest.mark.parametrize("workers", [0, 1])
def test_other_loaders_may_serve_two_epochs_at_once(workers: int) -> None:
    loader = wrapped(DataLoader(Numbers(), 4, shuffle=True, num_workers=workers))
    first, second = loader.batches(0), loader.batches(1)
    both = list(zip(first, second, strict=True))
    assert flat(one for one, _ in both) == epoch_order(N, 0, 0).tolist()
    assert flat(two for _, two in both) == epoch_order(N, 0, 1).tolist()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_global_generators_are_not_touched(workers: int, shuffle: bool, untouched_rngs: Any) -> None:
    loader = wrapped(DataLoader(Numbers(), 8, shuffle=shuffle, num_workers=workers))
    list(loader.batches(0))
    list(loader.batches(1, 2))


def test_without_workers_samples_draw_from_the_process_itself() -> None:
    loader = wrapped(DataLoader(Augmented(), 8))
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    first = values(loader.batches())
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = values(DataLoader(Augmented(), 8, generator=torch.Generator()))
    assert first == expected


# --- the rest of a DataLoader is kept


class InitSeen:
    """A worker_init_fn that changes the user's data set, as the documentation of torch suggests."""

    def __call__(self, worker: Any) -> Any:
        info = get_worker_info()
        assert isinstance(info.dataset, Numbers)
        info.dataset.offset = 100 * (worker + 1)  # type: ignore[attr-defined]


class Offset(Numbers):
    def __getitem__(self, index: Any) -> Any:
        return torch.tensor([index, self.offset])  # type: ignore[attr-defined]


def test_worker_init_fn_finds_the_users_data_set() -> None:
    source = DataLoader(Offset(8), 2, num_workers=2, worker_init_fn=InitSeen())
    assert values(wrapped(source).batches()) == [
        [[0, 100], [1, 100]],
        [[2, 200], [3, 200]],
        [[4, 100], [5, 100]],
        [[6, 200], [7, 200]],
    ]


def test_every_option_is_carried_over() -> None:
    source = DataLoader(
        Numbers(),
        5,
        shuffle=True,
        num_workers=1,
        collate_fn=noisy_collate,
        timeout=33,
        multiprocessing_context="spawn",
        prefetch_factor=7,
        persistent_workers=True,
        in_order=False,
    )
    made = wrapped(source)._loader
    for name in ("num_workers", "collate_fn", "pin_memory", "timeout", "prefetch_factor", "persistent_workers"):
        assert getattr(made, name) == getattr(source, name), name
    assert made.in_order is False
    assert made.multiprocessing_context is source.multiprocessing_context
    assert made.dataset.dataset is source.dataset
    assert wrapped(DataLoader(source.dataset))._loader.dataset is source.dataset  # bare without workers


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_a_worker_whose_trainer_is_there_stays(context: str) -> None:
    loader = wrapped(DataLoader(Numbers(), 5, num_workers=1, multiprocessing_context=context))
    assert len(list(loader.batches(0))) == N // 5


def test_a_worker_whose_trainer_was_killed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it started: what it sees then is another parent."""
    monkeypatch.setattr("os.getppid", lambda: 1)
    loader = wrapped(DataLoader(Numbers(), 5, num_workers=1, multiprocessing_context="fork"))
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(loader.batches(0))


def test_it_is_a_loader() -> None:
    assert isinstance(wrapped(DataLoader(Numbers())), Loader)


def test_a_sampler_of_ours_keeps_its_own_seed() -> None:
    source = DataLoader(Numbers(), batch_sampler=EpochBatchSampler(N, 7, seed=8, drop_last=True))
    loader = wrapped(source, seed=0)
    assert flat(loader.batches(3)) == epoch_order(N, 8, 3)[:49].tolist()
    assert (loader.batch_size, loader.num_samples, len(loader)) == (7, 49, 7)


def test_batches_may_be_any_structure() -> None:
    class Rows(Numbers):
        def __getitem__(self, index: Any) -> Any:
            return {"image": torch.tensor(index), "name": f"sample {index}"}, index

    ((mapping, indices),) = wrapped(DataLoader(Rows(3), 3)).batches()
    assert mapping["name"] == ["sample 0", "sample 1", "sample 2"]
    assert indices.tolist() == [0, 1, 2]


def test_an_epoch_without_a_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 50"):
        wrapped(DataLoader(Numbers(), N + 1, drop_last=True))


# --- the user's own samplers


class ThreeRngs(Sampler[Any]):
    """Draws from all three global generators."""

    def __init__(self, n: Any) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.n):
            yield (random.randrange(self.n) + np.random.randint(self.n) + int(torch.randint(self.n, ()))) % self.n


class WithEpoch(Sampler[Any]):
    """Like DistributedSampler: its order is a function of set_epoch."""

    epoch = 0

    def set_epoch(self, epoch: Any) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[Any]:
        return iter(np.random.default_rng(self.epoch).permutation(N).tolist())


class Endless(Sampler[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from torch.randperm(N).tolist()

    def __len__(self) -> int:
        return N


SAMPLERS = {
    "weighted": lambda: {"sampler": WeightedRandomSampler(torch.arange(1.0, N + 1), N)},
    "own generator": lambda: {"sampler": SubsetRandomSampler(range(10, 40), generator=torch.Generator())},
    "with replacement": lambda: {"sampler": RandomSampler(Numbers(), replacement=True, num_samples=33)},
    "three generators": lambda: {"sampler": ThreeRngs(N)},
    "set_epoch": lambda: {"sampler": WithEpoch()},
    "batch sampler": lambda: {"batch_sampler": BatchSampler(ThreeRngs(N), 6, drop_last=True)},
    "the global generator": lambda: {
        "sampler": RandomSampler(range(20), num_samples=45, generator=torch.default_generator)
    },
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_users_sampler_is_replayed(kind: Any, workers: int, untouched_rngs: Any) -> None:
    def loader(seed: int = 1) -> Any:
        options = SAMPLERS[kind]()
        return wrapped(
            DataLoader(
                Numbers(), **({} if "batch_sampler" in options else {"batch_size": 4}), **options, num_workers=workers
            ),
            seed=seed,
        )

    one = loader()
    epochs = [values(one.batches(epoch)) for epoch in range(3)]
    assert len(epochs[0]) == len(one)
    assert sum(map(len, epochs[0])) == one.num_samples
    assert epochs[0] != epochs[1] != epochs[2]
    assert values(one.batches(1, 2)) == epochs[1][2:]
    assert values(loader().batches(2)) == epochs[2]
    if kind != "set_epoch":
        assert values(loader(seed=2).batches(2)) != epochs[2]


def test_a_start_reads_no_sample_with_the_users_sampler() -> None:
    dataset = Numbers()
    loader = wrapped(DataLoader(dataset, 4, sampler=ThreeRngs(N)))
    tail = flat(loader.batches(0, 10))
    assert dataset.read == tail
    assert len(tail) == 10


def test_drawing_goes_on_while_the_process_draws() -> None:
    loader = wrapped(DataLoader(Numbers(), 1, sampler=ThreeRngs(N)))
    quiet = flat(loader.batches(0))
    noisy = []
    for batch in loader.batches(0):
        random.random(), np.random.rand(), torch.rand(1)
        noisy += batch.tolist()
    assert noisy == quiet


def test_an_endless_sampler_works() -> None:
    batches = wrapped(DataLoader(Numbers(), 4, sampler=Endless())).batches(0)
    assert len([next(batches) for _ in range(100)]) == 100


class Unsized(Dataset[Any]):
    def __getitem__(self, index: int) -> int:
        return index


class UnsizedSampler(Sampler[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(range(5))


class UnsizedBatches(Sampler[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([[0, 1], [2]])


def test_the_part_that_has_no_length_is_named() -> None:
    loaders = {
        "sampler": (DataLoader(Numbers(), 4, sampler=UnsizedSampler()), "UnsizedSampler"),
        "batch_sampler": (DataLoader(Numbers(), batch_sampler=UnsizedBatches()), "UnsizedBatches"),
    }
    for key, (plain, kind) in loaders.items():
        loader = wrapped(plain)
        assert loader.exact_length is None
        with pytest.raises(ConfigError, match=f"'{kind}' is invalid. .* __len__") as caught:
            len(loader)
        assert caught.value.key == key
        assert sum(1 for _ in loader.batches()) == 2
    with pytest.raises(ConfigError, match="dataset: 'Unsized' is invalid"):
        wrapped(DataLoader(Unsized(), 4))


def test_samples_that_are_batches_themselves() -> None:
    loader = wrapped(DataLoader(Numbers(), batch_size=None, shuffle=True))
    order = [int(sample) for sample in loader.batches(4)]
    assert sorted(order) == list(range(N))
    assert [int(sample) for sample in loader.batches(4, 30)] == order[30:]
    assert (len(loader), loader.batch_size) == (N, 1)


def test_a_sequential_batch_sampler_is_read_in_order() -> None:
    source = DataLoader(Numbers(), batch_sampler=BatchSampler(SequentialSampler(range(20)), 6, False))
    assert flat(wrapped(source).batches(1, 2)) == list(range(12, 20))
