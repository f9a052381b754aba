"""Limited loaders serve the first batches, from any position on, and state what they serve."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from trainyard.data import TensorLoader, WorkerLoader
from trainyard.data.lengths import exact_length, length_hint
from trainyard.data.limits import FirstBatches, limited, parse
from trainyard.errors import ConfigError


def loader(rows: int = 23, kind: str = "tensors") -> Any:
    x = torch.arange(rows)
    if kind == "tensors":
        return TensorLoader([x], 4, shuffle=True, seed=5)
    return WorkerLoader(DataLoader(TensorDataset(x), batch_size=4, shuffle=True), seed=5, device=torch.device("cpu"))


def served(found: Any, epoch: int = 0, start: int = 0) -> list[list[int]]:
    return [batch[0].tolist() for batch in found.batches(epoch, start)]


@given(st.integers(1, 9), st.integers(0, 8), st.integers(0, 2), st.booleans())
def test_the_first_batches_from_any_position(count: int, start: int, epoch: int, repeat: bool) -> None:
    whole = loader()
    part = FirstBatches(whole, count, repeat=repeat)
    assert served(part, epoch, start) == served(whole, 0 if repeat else epoch)[start:count]
    lazy = [batch[0].tolist() for batch in part.lazy_batches(epoch, start)]
    assert lazy == served(part, epoch, start)
    assert exact_length(part) == len(part) == len(served(part)) == min(6, count)
    assert part.num_samples >= sum(map(len, served(part)))


def test_processes_serve_them_too() -> None:
    whole = loader(kind="workers")
    assert served(FirstBatches(whole, 2), 1) == served(whole, 1)[:2]


@pytest.mark.parametrize(("limit", "batches"), [(2, 2), (99, 6), (0.5, 3), (1.0, 6), (0.01, 1), (1, 1)])
def test_counts_and_shares(limit: Any, batches: int) -> None:
    (found,) = parse({"train_batches": limit}).values()
    assert len(served(limited(loader(), found, "train"))) == batches


def test_without_a_limit_the_loader_is_the_same() -> None:
    whole = loader()
    assert limited(whole, parse({"train_batches": None}).get("train"), "train") is whole


def test_a_share_of_no_length_is_refused() -> None:
    class Endless:
        batch_size = 4

        def batches(self, epoch: int = 0, start: int = 0) -> Any:
            return iter([])

    assert length_hint(Endless()) is None
    with pytest.raises(
        ConfigError, match=r"limit.val_batches: 0.5 is invalid. Expected null for all batches, or a number of batches"
    ):
        limited(Endless(), 0.5, "val/easy")
    assert limited(Endless(), 3, "val").count == 3


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        (5, "limit: 5 is invalid"),
        ({"train": 5}, "train_batches"),
        *(({"val_batches": value}, "limit.val_batches") for value in (0, -1, 1.5, 0.0, True, "2", float("nan"))),
    ],
)
def test_values_that_are_no_limit(given_: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(given_)
