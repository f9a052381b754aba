"""Orders of epochs, each made while the one before is served."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainyard.data.epoch_orders import EpochOrders
from trainyard.data.tensor_loader import TensorLoader

CPU = torch.device("cpu")


@given(epochs=st.lists(st.integers(0, 5), max_size=12), ahead=st.booleans())
def test_whatever_epochs_are_asked_for(epochs: list[int], ahead: bool) -> None:
    orders = EpochOrders(lambda epoch: torch.arange(3) + epoch, CPU, ahead=ahead)
    assert [orders(epoch).tolist() for epoch in epochs] == [[epoch, epoch + 1, epoch + 2] for epoch in epochs]


def test_the_next_epoch_is_made_by_another_thread() -> None:
    made: list[tuple[int, bool]] = []
    both = threading.Event()

    def make(epoch: int) -> torch.Tensor:
        made.append((epoch, threading.current_thread() is threading.main_thread()))
        if len(made) == 2:
            both.set()
        return torch.arange(3)

    orders = EpochOrders(make, CPU, ahead=True)
    orders(0)
    assert both.wait(60)
    assert made == [(0, True), (1, False)]
    orders(1)
    assert made[1] == (1, False)
    assert (1, True) not in made


def test_an_error_of_the_thread_is_raised_where_the_order_is_asked_for() -> None:
    def make(epoch: int) -> torch.Tensor:
        if epoch:
            raise OverflowError("no more")
        return torch.arange(3)

    orders = EpochOrders(make, CPU, ahead=True)
    orders(0)
    with pytest.raises(OverflowError, match="no more"):
        orders(1)


def test_a_loader_serves_the_same_with_orders_made_ahead() -> None:
    def served(loader: TensorLoader) -> list[Any]:
        return [batch[0].tolist() for epoch in (0, 1, 1, 3) for batch in loader.batches(epoch)]

    loaders = [TensorLoader((torch.arange(20),), 6, shuffle=True, seed=3) for _ in range(2)]
    loaders[1].placed_order = EpochOrders(loaders[1].order, CPU, ahead=True)
    assert served(loaders[0]) == served(loaders[1])
