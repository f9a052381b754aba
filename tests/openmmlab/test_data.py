"""Data sets made of another, and images of different sizes in one batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainyard.data import ClassBalancedDataset, RepeatDataset
from trainyard.models import DataPreprocessor

pytest.importorskip("mmengine", reason="MMEngine is not installed: bash scripts/test_openmmlab.sh")
import mmengine.dataset
from mmengine.model import ImgDataPreprocessor


class Labelled(mmengine.dataset.BaseDataset):
    """Samples that are the sets of their classes."""

    def __init__(self, labels: list[set[int]]) -> None:
        self.labels = labels
        super().__init__(lazy_init=True)

    def full_init(self) -> None:
        self._fully_initialized = True

    def __len__(self) -> int:
        return len(self.labels)

    def get_cat_ids(self, index: int) -> list[int]:
        return sorted(self.labels[index])

    def __getitem__(self, index: int) -> Any:
        return index


LABELS: Any = st.lists(st.sets(st.integers(0, 4), max_size=3), min_size=1, max_size=30)


@given(labels=LABELS, share=st.sampled_from([0.01, 0.3, 0.7, 1.0]), times=st.integers(1, 4))
def test_repeated_samples(labels: list[set[int]], share: float, times: int) -> None:
    data = Labelled(labels)
    pairs: Any = [
        (ClassBalancedDataset(data, share), mmengine.dataset.ClassBalancedDataset(data, share)),
        (RepeatDataset(data, times), mmengine.dataset.RepeatDataset(data, times)),
    ]
    for own, other in pairs:
        assert [own[index] for index in range(len(own))] == [other[index] for index in range(len(other))]


@pytest.mark.parametrize("divisor", [1, 4, 32])
@pytest.mark.parametrize("sizes", [[(5, 7), (6, 3)], [(8, 8)]])
def test_padded_images(divisor: int, sizes: list[tuple[int, int]]) -> None:
    numbers: Any = {"mean": [1.0, 2.0, 3.0], "std": [2.0, 3.0, 4.0], "pad_size_divisor": divisor, "pad_value": 0.5}
    images = [torch.randint(255, (3, *size), dtype=torch.uint8) for size in sizes]
    found, _ = DataPreprocessor(**numbers)((images, 0))
    expected = ImgDataPreprocessor(**numbers)({"inputs": images})["inputs"]
    assert torch.equal(found, expected)
    stacked = torch.stack([images[0], images[0]])
    assert torch.equal(
        DataPreprocessor(**numbers)((stacked, 0))[0], ImgDataPreprocessor(**numbers)({"inputs": stacked})["inputs"]
    )
