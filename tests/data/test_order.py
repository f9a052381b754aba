"""The order of an epoch, and the batch sampler."""

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from trainyard.data import EpochBatchSampler, epoch_order
from trainyard.errors import ConfigError

seeds = st.integers(0, 2**40)
epochs = st.integers(0, 10_000)


@given(n=st.integers(1, 500), seed=seeds, epoch=epochs)
def test_order_is_a_permutation_and_a_pure_function(n: int, seed: Any, epoch: Any) -> None:
    order = epoch_order(n, seed, epoch)
    np.random.seed(0)  # what the process draws meanwhile does not matter
    epoch_order(7, seed, epoch + 1)
    assert sorted(order) == list(range(n))
    assert (order == epoch_order(n, seed, epoch)).all()


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = [tuple(epoch_order(100, seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


@given(
    n=st.integers(1, 200),
    batch_size=st.integers(1, 70),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    epoch=epochs,
    data=st.data(),
)
def test_start_at_any_batch_is_the_tail_of_the_epoch(
    n: int, batch_size: int, shuffle: bool, drop_last: bool, epoch: Any, data: st.DataObject
) -> None:
    if drop_last:
        batch_size = min(batch_size, n)
    sampler = EpochBatchSampler(n, batch_size, shuffle=shuffle, drop_last=drop_last, seed=3)
    sampler.set_position(epoch)
    whole = list(sampler)
    assert len(whole) == len(sampler)
    assert sum(map(len, whole)) == sampler.num_samples
    served = [index for batch in whole for index in batch]
    assert len(set(served)) == len(served)
    if not drop_last:
        assert set(served) == set(range(n))
    if not shuffle:
        assert served == list(range(len(served)))
    start = data.draw(st.integers(0, len(whole) + 1))
    sampler.set_position(epoch, start)
    assert list(sampler) == whole[start:]
    assert len(sampler) == len(whole)


def test_iterators_that_are_open_together_keep_their_positions() -> None:
    sampler = EpochBatchSampler(20, 4, seed=1)
    sampler.set_position(0)
    expected = list(sampler)
    sampler.set_position(0)
    first = iter(sampler)
    sampler.set_position(5, 2)
    iter(sampler)
    assert list(first) == expected


def test_it_is_a_batch_sampler_of_a_torch_dataloader() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10)), batch_sampler=EpochBatchSampler(10, 4, seed=2))
    batches = [batch.tolist() for (batch,) in loader]
    assert len(loader) == 3
    assert list(chain(*batches)) == epoch_order(10, 2, 0).tolist()


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, 64.0, "8", None, True])
def test_bad_batch_sizes_are_refused(batch_size: bool | float | str | None) -> None:
    with pytest.raises(ConfigError, match="batch_size") as caught:
        EpochBatchSampler(10, batch_size)
    assert caught.value.key == "batch_size"


def test_an_epoch_without_a_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 10"):
        EpochBatchSampler(10, 11, drop_last=True)
    with pytest.raises(ConfigError, match="at least one sample"):
        EpochBatchSampler(0, 4)
    assert len(EpochBatchSampler(10, 11)) == 1
