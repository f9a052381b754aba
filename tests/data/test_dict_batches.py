"""Tensors in memory under names: batches are dicts, alone, in workers, on ranks and in a stack over seeds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from data_runs import resumes_to_the_bits, stack_follows_members, training
from torch import Tensor, nn

from trainyard.data import ArrayData, TensorLoader
from trainyard.distributed.rank_loader import share_of, turns_of
from trainyard.fused.loader import StackedLoader

CPU = torch.device("cpu")
IDS = torch.randint(0, 9, (50, 6), generator=torch.Generator().manual_seed(0))
NAMED = {"input_ids": IDS, "attention_mask": (IDS > 2).long(), "labels": (IDS[:, 0] > 4).long()}
LOADERS = [{"shuffle": True}, {"shuffle": False}, {"shuffle": True, "drop_last": True}]


class Sentences(ArrayData):
    def __init__(self, workers: int = 0) -> None:
        parts = {"train": slice(0, 40), "val": slice(40, 50)}
        sources = {split: {name: column[own] for name, column in NAMED.items()} for split, own in parts.items()}
        super().__init__(sources, {"vocab_size": 9, "num_classes": 2}, batch_size=8, workers=workers)


class Bag(nn.Module):
    """Means of embeddings, called by the names of a batch, as models of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = attention_mask.unsqueeze(-1).float()
        out: Tensor = self.head((self.embedding(input_ids) * weights).sum(1) / weights.sum(1).clamp_min(1))
        return out


def same(named: Any, plain: Any) -> None:
    named, plain = list(named), list(plain)
    assert len(named) == len(plain) > 0
    for one, other in zip(named, plain, strict=True):
        assert list(one) == list(NAMED)
        assert all(torch.equal(a, b) for a, b in zip(one.values(), other, strict=True))


@pytest.mark.parametrize("options", LOADERS)
def test_dicts_have_the_tensors_that_tuples_have(options: Any) -> None:
    named = TensorLoader([*NAMED.values()], 8, seed=3, names=[*NAMED], **options)
    plain = TensorLoader([*NAMED.values()], 8, seed=3, **options)
    for start in (0, 2):
        same(named.batches(1, start), plain.batches(1, start))
    same(StackedLoader(named, [1, 2]).batches(1), StackedLoader(plain, [1, 2]).batches(1))
    for rank in range(2):
        same(share_of(named, rank, 2).batches(1, 1), share_of(plain, rank, 2).batches(1, 1))
        same(turns_of(named, rank, 2).batches(1), turns_of(plain, rank, 2).batches(1))


def test_workers_serve_dicts() -> None:
    one, two = (list(Sentences(workers).loader("train", seed=1, device=CPU).batches(2)) for workers in (0, 1))
    same(two, [tuple(batch.values()) for batch in one])


VALUES = training({"_target_": Sentences}, {"_target_": "trainyard.models.Supervised", "net": {"_target_": Bag}})


def test_a_run_resumes_to_the_bits(tmp_path: Path) -> None:
    resumes_to_the_bits(VALUES, tmp_path, 7)


def test_a_stack_over_seeds_follows_its_members() -> None:
    stack_follows_members(VALUES)


def test_dicts_are_not_taken_row_by_row() -> None:
    """A captured step takes rows of tuples by itself; dicts are gathered."""
    named = TensorLoader([*NAMED.values()], 8, seed=3, shuffle=True, names=[*NAMED])
    assert not named.takes_rows
    same(named.lazy_batches(1), [tuple(batch.values()) for batch in named.batches(1)])
    stacked = StackedLoader(named, [1, 2])
    same(stacked.lazy_batches(1), [tuple(batch.values()) for batch in stacked.batches(1)])
