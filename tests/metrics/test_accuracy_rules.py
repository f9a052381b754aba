"""Accuracy against its rules written out sample by sample: ties, NaN, padding, and targets that are no class."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.metrics import Accuracy

VALUES = st.sampled_from([0.0, 1.0, -1.0, math.inf, -math.inf, math.nan])


def is_right(row: list[float], target: int, k: int) -> bool:
    """Whether fewer than `k` classes come before the right one."""
    if not 0 <= target < len(row):
        return False
    right = row[target]
    before = sum(not value <= right or (value == right and index < target) for index, value in enumerate(row))
    return before < k


@settings(max_examples=200)
@given(data=st.data(), classes=st.integers(1, 4), ignored=st.sampled_from([-100, 0, 2]))
def test_every_sample_is_judged_by_the_rules(data: st.DataObject, classes: int, ignored: int) -> None:
    rows = data.draw(st.lists(st.lists(VALUES, min_size=classes, max_size=classes), min_size=1, max_size=8))
    targets = [data.draw(st.sampled_from([*range(classes), -100, -1, classes])) for _ in rows]
    for topk in (1, [1, 3]):
        metric = Accuracy(topk, ignore_index=ignored)
        metric.process((0, torch.tensor(targets)), torch.tensor(rows))
        counted = [(row, target) for row, target in zip(rows, targets, strict=True) if target != ignored]
        assert metric.state["count"] == len(counted)
        for name, k in metric.names.items():
            assert metric.state[name] == sum(is_right(row, target, k) for row, target in counted)


@pytest.mark.parametrize("topk", [1, [1, 5]])
def test_a_target_that_is_no_class_is_never_right(topk: int | list[int]) -> None:
    metric = Accuracy(topk)
    metric.process((0, torch.tensor([-1, 3, 0, -100])), torch.zeros(4, 3))
    assert metric.state["accuracy"] == 1
    assert metric.state["count"] == 3


def test_whole_numbers_are_outputs_too() -> None:
    metric = Accuracy()
    metric.process((0, torch.tensor([1, 0])), torch.tensor([[0, 1], [0, 1]]))
    assert metric.compute() == 0.5
