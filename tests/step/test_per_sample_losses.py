"""A loss of one number for each sample is refused wherever a step is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainyard.errors import TrainyardError
from trainyard.fused.runner import FusedRunner
from trainyard.models import BaseModel, total_loss
from trainyard.runner import Runner


class Model(BaseModel):
    """Returns a loss of one shape or another."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.net = nn.Linear(2, 2)

    def forward(self, x: Tensor, y: Any = None, mode: str = "tensor") -> Any:
        output = self.net(x)
        if mode != "loss":
            return output
        losses = nn.functional.cross_entropy(output, y, reduction="none")
        return {
            "samples": {"loss": losses},
            "one of two": {"loss_a": losses.mean(), "loss_b": losses},
            "in a list": {"losses": [losses.mean(), losses]},
            "column": {"loss": losses[:, None]},
            "accuracy": {"loss": losses.mean(), "accuracy": (output.argmax(1) == y).float()},
            "scalar": {"loss": losses.mean(), "accuracy": (output.argmax(1) == y).float().mean()},
            "one": {"loss": losses.mean(0, keepdim=True)},
        }[self.kind]


def config(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "model": {"_target_": Model, "kind": kind},
        "data": {"_target_": "trainyard.data.Rings", "num_samples": 64, "batch_size": 8},
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        "loop": {"_target_": "trainyard.runner.IterBasedTrainLoop", "max_iters": 4},
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "hook": {},
        "device": "cpu",
    } | more


def trained(kind: str, stacked: bool, **more: Any) -> Runner:
    members = [config(kind, seed=seed, **more) for seed in (0, 1)]
    runner = FusedRunner(members) if stacked else Runner.from_cfg(members[0])
    runner.train()
    return runner


SHAPES = {
    "samples": (r"'loss' with the shape \[8\]", "grow with their number"),
    "one of two": (r"'loss_b' with the shape \[8\]", "grow with their number"),
    "in a list": (r"'losses' with the shape \[8\]", "grow with their number"),
    "column": (r"'loss' with the shape \[8, 1\]", "grow with their number"),
    "accuracy": (r"'accuracy' with the shape \[8\]", "It is recorded as a metric"),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("more", [{}, {"accumulate": 2}])
@pytest.mark.parametrize("stacked", [False, True])
def test_the_shape_and_what_to_do_are_told(kind: str, more: dict[str, Any], stacked: bool) -> None:
    told, why = SHAPES[kind]
    with pytest.raises(TrainyardError, match=rf"{told}.*{why}.*Take the mean"):
        trained(kind, stacked, **more)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_loss_of_one_number_in_a_row_is_a_scalar(stacked: bool) -> None:
    found = [trained(kind, stacked).members[0].model.state_dict() for kind in ("one", "scalar")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_validation_losses_too() -> None:
    workflow = {"loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 1}}
    workflow["loop"]["workflow"] = [["train", 1], ["val", 1]]
    with pytest.raises(TrainyardError, match=r"shape \[13\]"):
        Runner.from_cfg(config("samples", **workflow)).prepare()


def test_the_sum_of_a_stack_of_as_many_members_as_samples() -> None:
    assert total_loss({"loss": torch.ones(4)}, stacked=True).shape == (4,)
    with pytest.raises(TrainyardError, match=r"shape \[4\]"):
        total_loss({"loss": torch.ones(4)})
    with pytest.raises(TrainyardError, match=r"shape \[4\]"):
        total_loss({"loss": torch.ones(4, 4)}, stacked=True)
