"""Rows of docs/coming-from-openmmlab.md about several devices that one rank can show."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from trainyard.distributed import world
from trainyard.distributed.ddp import DDP
from trainyard.errors import ConfigError
from trainyard.hooks import Hook
from trainyard.models import CNN
from trainyard.runner import EpochBasedTrainLoop, Runner


@pytest.fixture(autouse=True)
def alone() -> Iterator[Any]:
    """A world of one rank, which no other test finds."""
    world.leave()
    yield
    world.leave()


class Seen(Hook):
    def after_train(self, runner: Runner) -> None:
        self.backend = dist.get_backend()


def trained(**settings: Any) -> Any:
    seen = Seen()
    Runner(
        {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2},
        {"_target_": "trainyard.data.Rings", "num_samples": 200, "val_fraction": 0},
        {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        loop=EpochBasedTrainLoop(1),
        hooks={"seen": seen},
        strategy={"_target_": "trainyard.distributed.ddp.DDP", **settings},
        device="cpu",
    ).train()
    return seen


@pytest.mark.parametrize("backend", ["auto", "gloo"])
def test_the_backend(backend: str) -> None:
    assert trained(backend=backend).backend == "gloo"


def test_a_backend_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r"backend: 'nckl' is invalid\. Expected .*gloo"):
        trained(backend="nckl")


def test_batch_norm_over_all_ranks() -> None:
    placed = DDP(sync_batchnorm=True).place(CNN(1, 10))
    kinds = {type(module) for module in placed.modules()}
    assert nn.SyncBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds
    with pytest.raises(ConfigError, match="sync_batchnorm"):
        DDP(sync_batchnorm=True).begin(torch.device("cpu"))
