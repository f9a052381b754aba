"""Data sets made of another."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from trainyard.config.build import build
from trainyard.data import ClassBalancedDataset, FirstSamples, RepeatDataset, pseudo_collate
from trainyard.errors import ConfigError, TrainyardError
from trainyard.models import BaseModel, DataPreprocessor
from trainyard.runner import EpochBasedTrainLoop, Runner


class Labelled(Dataset[Any]):
    metainfo = ("cat", "dog", "owl")

    def __init__(self, labels: list[int]) -> None:
        self.kinds = labels

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Any:
        return torch.full((2,), float(index)), self.kinds[index]


def test_repeated() -> None:
    repeated = RepeatDataset(Labelled([0, 1, 2]), 2)
    assert [label for _, label in (repeated[index] for index in range(len(repeated)))] == [0, 1, 2, 0, 1, 2]
    assert repeated.metainfo == ("cat", "dog", "owl")
    assert repeated.get_cat_ids(4) == [1]


def test_rare_classes_come_more_often() -> None:
    labels = [0] * 14 + [1] * 1 + [2] * 1
    balanced = ClassBalancedDataset(Labelled(labels), 0.5)
    found = Counter(balanced[index][1] for index in range(len(balanced)))
    assert found == {0: 14, 1: 3, 2: 3}  # sqrt(0.5 * 16), rounded up


@pytest.mark.parametrize("name", ["targets", "labels"])
def test_classes_may_be_listed(name: str) -> None:
    class Listed(Labelled):
        def __getitem__(self, index: int) -> Any:
            raise AssertionError("a sample was read")

    listed = Listed([0] * 9)
    setattr(listed, name, torch.tensor([0] * 8 + [1]))
    assert len(ClassBalancedDataset(listed, 0.8)) == 8 + 3


def test_the_first() -> None:
    assert len(FirstSamples(Labelled([0, 1, 2]), 2)) == 2
    assert len(FirstSamples(Labelled([0, 1, 2]), 20)) == 3


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield 1


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RepeatDataset(Labelled([0]), 0), "times: 0 is invalid. Expected an integer of at least 1"),
        (lambda: RepeatDataset(Stream(), 2), "dataset: 'Stream' is invalid. Expected a map-style data set"),
        (
            lambda: RepeatDataset(Labelled([]), 2),
            ("dataset: 'Labelled' is invalid. Expected a data set with at least one sample"),
        ),
        (lambda: ClassBalancedDataset(Labelled([0]), 2), "oversample_thr: 2 is invalid. Expected a number above 0 and"),
        (lambda: FirstSamples(Labelled([0]), 0), "count: 0 is invalid"),
    ],
)
def test_what_cannot_be(make: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value).startswith(told)


class Pictures(Dataset[Any]):
    """Images of different sizes."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return torch.full((3, 4 + index, 9 - index), index, dtype=torch.uint8), index % 2


class Mean(BaseModel):
    def __init__(self) -> None:
        super().__init__(DataPreprocessor(mean=1.0, std=2.0, pad_size_divisor=4, pad_value=-1.0))
        self.layer = torch.nn.Linear(3, 2)
        self.shapes: list[Any] = []

    def forward(self, images: Tensor, labels: Any, mode: str = "tensor") -> Any:
        self.shapes.append(list(images.shape))
        scores = self.layer(images.mean((2, 3)))
        labels = torch.as_tensor(labels)
        return {"loss": torch.nn.functional.cross_entropy(scores, labels)} if mode == "loss" else scores


def test_images_of_different_sizes_are_stacked_in_a_training() -> None:
    loader = DataLoader(Pictures(), 4, collate_fn=pseudo_collate)
    runner = Runner(Mean(), {"train": loader}, partial(torch.optim.SGD, lr=0.1), hooks={}, loop=EpochBasedTrainLoop(1))
    runner.train()
    assert runner.model.shapes == [[4, 3, 8, 12], [2, 3, 12, 8]]


def test_what_is_padded() -> None:
    images = [torch.full((1, 2, 3), 5, dtype=torch.uint8), torch.full((1, 3, 2), 7, dtype=torch.uint8)]
    found, rest = DataPreprocessor(mean=1, std=2, pad_value=9)((images, "targets"))
    assert rest == "targets"
    assert found.tolist() == [
        [[[2, 2, 2], [2, 2, 2], [9, 9, 9]]],
        [[[3, 3, 9], [3, 3, 9], [3, 3, 9]]],
    ]
    (alone,) = DataPreprocessor(pad_size_divisor=4)((torch.ones(2, 1, 3, 5),))
    assert alone.shape == (2, 1, 4, 8)
    with pytest.raises(
        TrainyardError, match=r"differ only in height and width, but their shapes are \[1, 2, 3\], \[2, 2"
    ):
        DataPreprocessor()(([torch.ones(1, 2, 3), torch.ones(2, 2, 3)], 0))
    with pytest.raises(TrainyardError, match=r"their shapes are \[1, 2, 3\], \[2, 2, 3\]\."):
        DataPreprocessor()(([torch.ones(1, 2, 3)] * 5 + [torch.ones(2, 2, 3)], 0))


def test_batches_of_lists() -> None:
    assert pseudo_collate([{"image": 1, "label": 2}, {"image": 3, "label": 4}]) == {"image": [1, 3], "label": [2, 4]}
    assert pseudo_collate([1, 2]) == [1, 2]


def test_concatenated_by_a_config() -> None:
    node = {"_target_": f"{__name__}.Labelled", "labels": [0, 1]}
    both = build({"_target_": "torch.utils.data.ConcatDataset", "datasets": [node, node]}, "data")
    assert [both[index][1] for index in range(len(both))] == [0, 1, 0, 1]
