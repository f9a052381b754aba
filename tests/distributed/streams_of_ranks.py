"""A training of two ranks whose streams end at different places: what test_lengths.py starts.

python streams_of_ranks.py <folder>
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from trainyard.errors import TrainyardError
from trainyard.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner


class Uneven(IterableDataset[Any]):
    """So many samples on each rank."""

    def __init__(self, *sizes: int) -> None:
        self.size = sizes[int(os.environ["RANK"])]

    def __iter__(self) -> Iterator[Any]:
        return ((torch.full((4,), float(number)), number % 3) for number in range(self.size))


def runner(train: tuple[int, int], val: tuple[int, int], loop: Any) -> Runner:
    return Runner(
        model={"_target_": "trainyard.models.MLP", "in_features": 4, "num_classes": 3, "hidden": [6]},
        data={"train": DataLoader(Uneven(*train), 4), "val": DataLoader(Uneven(*val), 4)},
        optim={"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.01},
        loop=loop,
        metrics={"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        hooks={},
        device="cpu",
        accumulate=2,
        strategy={"_target_": "trainyard.distributed.ddp.DDP"},
    )


def main(folder: Path) -> None:
    logging.basicConfig(filename=folder / f"{os.environ['RANK']}.log", level=logging.INFO)
    same = runner((10, 10), (9, 9), EpochBasedTrainLoop(2))
    same.train()
    assert (same.epoch, same.iter) == (2, 6)
    uneven = runner((10, 21), (9, 9), EpochBasedTrainLoop(3))
    uneven.train()
    assert (uneven.epoch, uneven.iter) == (3, 9), (uneven.epoch, uneven.iter)
    uneven = runner((21, 10), (9, 9), IterBasedTrainLoop(7, val_interval=4))
    uneven.train()
    assert (uneven.epoch, uneven.batches_done) == (2, 1)
    try:
        runner((10, 10), (9, 17), EpochBasedTrainLoop(1)).train()
    except TrainyardError as error:
        logging.info("Refused: %s", error)
    uneven.strategy.end()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
