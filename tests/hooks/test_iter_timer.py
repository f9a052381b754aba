from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from trainyard.hooks import Hook, IterTimer, Logger
from trainyard.runner import IterBasedTrainLoop

READ, TRAIN, VALIDATE = 0.004, 0.002, 0.05


class Clock:
    """What the hook takes for the time.

    Args:
        each: nanoseconds that a look at it takes.
    """

    def __init__(self, each: int = 0) -> None:
        self.now = 0
        self.each = each

    def __call__(self) -> Any:
        self.now += self.each
        return self.now

    def sleep(self, seconds: Any) -> None:
        self.now += round(1e9 * seconds)


class Slow(Dataset[Any]):
    """Points of two classes, each read slowly."""

    def __init__(self, count: Any, seconds: Any, clock: Any) -> None:
        self.count = count
        self.seconds = seconds
        self.clock = clock

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: Any) -> Any:
        self.clock.sleep(self.seconds)
        return torch.full((2,), float(i % 2)), i % 2


def test_the_mean_of_a_window_is_its_share_of_the_clock(
    make: Any, points: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainyard.hooks.iter_timer.perf_counter_ns", Clock(each=1000))
    make({"timer": IterTimer(), "logger": Logger(6)}, work_dir=tmp_path).train()
    found = points(tmp_path)
    for epoch in (1, 2, 3):  # a look before the epoch, two in each iteration
        assert found["train/data_time", 6 * epoch] == 1e-6
        assert found["train/time", 6 * epoch] == 2e-6


@pytest.mark.parametrize("workflow", [None, [["train", 1], ["val", 2]]])
def test_waiting_for_data_is_told_apart_and_validation_is_left_out(
    make: Any, points: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workflow: Any
) -> None:
    class Work(Hook):
        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            clock.sleep(TRAIN)

    Work.priority = "HIGHEST"
    clock = Clock()
    monkeypatch.setattr("trainyard.hooks.iter_timer.perf_counter_ns", clock)
    data = {
        "train": DataLoader(Slow(4, READ, clock), batch_size=1),
        "val": DataLoader(Slow(1, VALIDATE, clock), batch_size=1),
        "spec": {"in_features": 2, "num_classes": 2},
    }
    hooks = {"timer": IterTimer(), "work": Work(), "logger": Logger(2)}
    loop = IterBasedTrainLoop(8, val_interval=2, workflow=workflow)
    make(hooks, data=data, loop=loop, work_dir=tmp_path).train()
    found = points(tmp_path)
    for step in (2, 4, 6, 8):
        assert found["train/data_time", step] == pytest.approx(READ)
        assert found["train/time", step] == pytest.approx(READ + TRAIN)
