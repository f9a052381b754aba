"""What every hook is tried on: a small real training of six batches an epoch."""

import pytest
import torch

from trainyard.data import Rings
from trainyard.hooks import Hook
from trainyard.metrics import Metric
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.track import read

BATCHES = 6


@pytest.fixture
def make():
    """A Runner with these hooks, for so many epochs; keywords replace its other arguments."""

    def make(hooks, epochs=3, **more):
        settings = {
            "model": {
                "_target_": "trainyard.models.MLP",
                "in_features": "auto",
                "num_classes": "auto",
                "hidden": [8],
            },
            "data": Rings(num_samples=320, batch_size=32),
            "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
            "loop": EpochBasedTrainLoop(epochs),
            "metrics": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
            "device": "cpu",
        }
        runner = Runner(hooks=hooks, **(settings | more))
        assert len(runner.loader("train")) == BATCHES or "data" in more
        return runner

    return make


@pytest.fixture
def points():
    """The numbers in the journal of a directory, by name and step."""

    def points(folder):
        return {
            (name, record["step"]): value
            for record, _ in read(folder / "metrics.jsonl")
            if record["kind"] == "metrics"
            for name, value in record["values"].items()
        }

    return points


class InterruptAt(Hook):
    """Interrupts the run after an iteration, as Ctrl-C does."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if runner.iter == self.iteration:
            runner.interrupt()


@pytest.fixture
def interrupt_at():
    return InterruptAt


class Scripted(Metric):
    """Gives these values, one a validation."""

    def __init__(self, values):
        super().__init__()
        self.values = [0.0, *values]  # the first is for the rehearsal

    def process(self, batch, outputs):
        pass

    def compute(self):
        return torch.tensor(self.values.pop(0), dtype=torch.float64)


@pytest.fixture
def scripted():
    return Scripted
