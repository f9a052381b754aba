"""What every hook is tried on: a small real training of six batches an epoch."""

from typing import Any

import pytest
import torch
from interrupting import InterruptAt

from trainyard.data import Rings
from trainyard.metrics import Metric
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.track import read

BATCHES = 6


@pytest.fixture
def make() -> Any:
    """A Runner with these hooks, for so many epochs; keywords replace its other arguments."""

    def make(hooks: Any, epochs: int = 3, **more: Any) -> Any:
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
def points() -> Any:
    """The numbers in the journal of a directory, by name and step."""

    def points(folder: Any) -> Any:
        return {
            (name, record["step"]): value
            for record, _ in read(folder / "metrics.jsonl")
            if record["kind"] == "metrics"
            for name, value in record["values"].items()
        }

    return points


@pytest.fixture
def interrupt_at() -> Any:
    return InterruptAt


class Scripted(Metric):
    """Gives these values, one a validation."""

    def __init__(self, values: Any) -> None:
        super().__init__()
        self.values = [0.0, *values]  # the first is for the rehearsal

    def process(self, batch: Any, outputs: Any) -> None:
        pass

    def compute(self) -> Any:
        return torch.tensor(self.values.pop(0), dtype=torch.float64)


@pytest.fixture
def scripted() -> Any:
    return Scripted
