from time import perf_counter, sleep

import torch
from torch.utils.data import DataLoader, Dataset

from trainyard.hooks import Hook, IterTimer, Logger
from trainyard.runner import IterBasedTrainLoop

READ = 0.004
VALIDATE = 0.05


class Slow(Dataset):
    """Points of two classes, each read slowly."""

    def __init__(self, count, seconds):
        self.count = count
        self.seconds = seconds

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        sleep(self.seconds)
        return torch.full((2,), float(i % 2)), i % 2


def test_the_mean_of_a_window_is_its_share_of_the_clock(make, points, tmp_path):
    class Clock(Hook):
        """From the moment at which a window begins to that at which it ends."""

        priority = "HIGHEST"

        def before_train_epoch(self, runner):
            self.begin = perf_counter()

        def after_train_epoch(self, runner):
            self.took.append(perf_counter() - self.begin)

    clock = Clock()
    clock.took = []
    make({"timer": IterTimer(), "logger": Logger(6), "clock": clock}, work_dir=tmp_path).train()
    found = points(tmp_path)
    for epoch, took in enumerate(clock.took, 1):
        assert 0 < found["train/data_time", 6 * epoch] < found["train/time", 6 * epoch] <= took / 6


def test_waiting_for_data_is_told_apart_and_validation_is_left_out(make, points, tmp_path):
    data = {
        "train": DataLoader(Slow(4, READ), batch_size=1),
        "val": DataLoader(Slow(1, VALIDATE), batch_size=1),
        "spec": {"in_features": 2, "num_classes": 2},
    }
    hooks = {"timer": IterTimer(), "logger": Logger(2)}
    runner = make(hooks, data=data, loop=IterBasedTrainLoop(8, val_interval=2), work_dir=tmp_path)
    runner.prepare()
    begin = perf_counter()
    runner.train()
    took = perf_counter() - begin
    found = points(tmp_path)
    steps = (2, 4, 6, 8)
    assert all(READ <= found["train/data_time", step] <= found["train/time", step] for step in steps)
    assert sum(2 * found["train/time", step] for step in steps) < took - len(steps) * VALIDATE
