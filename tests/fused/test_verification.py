"""A stack is compared with its members alone, before it trains and while it does."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainyard.errors import Unfusable
from trainyard.fused.probe import probe
from trainyard.fused.runner import FusedRunner
from trainyard.fused.verification import StackVerification
from trainyard.hooks import Hook
from trainyard.models import BaseModel
from trainyard.runner import Runner

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


class Masked(BaseModel):
    """Half of its inputs are masked; the mask is drawn at construction, and held in one of several ways."""

    def __init__(self, holder: str) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        mask = (torch.rand(64) < 0.5).float()
        self.holder = holder
        self.masks: Any = {
            "dict": {"in": mask},
            "namespace": SimpleNamespace(mask=mask),
            "list of dicts": [{"in": mask}],
            "closure": lambda: mask,
            "buffer": None,
        }[holder]
        if holder == "buffer":
            self.register_buffer("mask", mask)

    def forward(self, x: Tensor, y: Tensor | None = None, mode: str = "tensor") -> Any:
        match self.holder:
            case "dict":
                mask = self.masks["in"]
            case "namespace":
                mask = self.masks.mask
            case "list of dicts":
                mask = self.masks[0]["in"]
            case "closure":
                mask = self.masks()
            case _:
                mask = self.mask
        out = self.layer(x.flatten(1) * mask)
        return {"loss": F.cross_entropy(out, y)} if mode == "loss" else out


class Drawing(BaseModel):
    """Draws random numbers in its forward pass."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.norm = nn.BatchNorm1d(10)
        self.dropout = nn.Dropout(0.5)
        self.source = source

    def forward(self, x: Tensor, y: Tensor | None = None, mode: str = "tensor") -> Any:
        out = self.norm(self.layer(x.flatten(1)))
        match self.source:
            case "python":
                out = out * random.random()
            case "numpy":
                out = out * float(np.random.rand())
            case "dropout":
                out = self.dropout(out)
            case "functional":
                out = F.dropout(out, 0.5, self.training)
            case "always":
                out = out + torch.randn_like(out)
        return {"loss": F.cross_entropy(out, y)} if mode == "loss" else out


def config(seed: int, model: type[nn.Module], **arguments: Any) -> dict[str, Any]:
    return {
        "model": {"_target_": model, **arguments},
        "data": {"_target_": "trainyard.data.Digits"},
        "seed": seed,
        "hook": {},
        "device": "cpu",
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-2},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 2},
        "metric": {"accuracy": {"_target_": "trainyard.metrics.Accuracy"}},
        "objective": "val/accuracy",
        "direction": "maximize",
    }


@pytest.mark.parametrize("holder", ["dict", "namespace", "list of dicts", "closure"])
def test_a_value_that_a_stack_would_take_from_the_first_member(holder: str) -> None:
    configs = [config(seed, Masked, holder=holder) for seed in range(3)]
    with pytest.raises(Unfusable, match=r"in a stack, the loss of the member with seed [12] differs .*register_buffer"):
        FusedRunner(configs).prepare()
    fit = probe(configs, 3)
    assert fit.width == 1
    assert "register_buffer" in (fit.reason or "")


class Counting(BaseModel):
    """Scales its outputs by the number of its calls."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.calls: Any = 0
        if buffer:
            del self.calls
            self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, y: Tensor | None = None, mode: str = "tensor") -> Any:
        self.calls += 1
        out = self.layer(x.flatten(1)) * self.calls
        return {"loss": F.cross_entropy(out, y)} if mode == "loss" else out


def test_a_counter_must_be_a_buffer() -> None:
    with pytest.raises(Unfusable, match="probably, a value outside of parameters and buffers differs"):
        FusedRunner([config(0, Counting, buffer=False) for _ in range(2)]).prepare()
    FusedRunner([config(0, Counting, buffer=True) for _ in range(2)]).prepare()


class Sparse(BaseModel):
    """Has an embedding with a sparse gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(17, 10, sparse=True)

    def forward(self, x: Tensor, y: Tensor | None = None, mode: str = "tensor") -> Any:
        out = self.table(x.flatten(1).long().clamp(0, 16)).sum(1)
        return {"loss": F.cross_entropy(out, y)} if mode == "loss" else out


def test_a_sparse_gradient_is_named() -> None:
    reason = probe([config(seed, Sparse) for seed in range(2)], 2).reason
    assert reason == "the gradient of table.weight is sparse, which is not supported in a stack: use sparse=False"


def test_a_mask_in_a_buffer_is_a_members_own() -> None:
    stack = FusedRunner([config(seed, Masked, holder="buffer") for seed in range(2)])
    together = stack.train()
    for seed in range(2):
        (alone,) = Runner.from_cfg(config(seed, Masked, holder="buffer")).train()
        assert alone["val/accuracy"] == pytest.approx(together[seed]["val/accuracy"], abs=0.01)


@pytest.mark.parametrize(("source", "name"), [("python", "Python"), ("numpy", "NumPy")])
def test_random_numbers_that_a_stack_would_draw_once_for_all(source: str, name: str) -> None:
    with pytest.raises(Unfusable, match=f"the model draws from {name}'s random generator"):
        FusedRunner([config(seed, Drawing, source=source) for seed in range(2)]).prepare()


@pytest.mark.parametrize("source", ["dropout", "functional", "always"])
def test_random_numbers_of_torch_are_no_difference(source: str) -> None:
    FusedRunner([config(seed, Drawing, source=source) for seed in range(2)]).train()


@pytest.mark.parametrize("source", ["none", "dropout", "always"])
def test_nothing_of_the_run_changes(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Weights, buffers, modes and generators are those of a stack that was not compared."""
    found = []
    for compared in (True, False):
        with monkeypatch.context() as patch:
            if not compared:
                patch.setattr(StackVerification, "begin", lambda *_: None)
                patch.setattr(StackVerification, "after_train_epoch", lambda *_: None)
            stack = FusedRunner([config(seed, Drawing, source=source) for seed in range(3)])
            stack.prepare()
            modes = [module.training for member in stack.members for module in member.model.modules()]
            stack.train()
        found.append((modes, {name: value.clone() for name, value in stack.model.state_dict().items()}))
    assert found[0][0] == found[1][0]
    for name, value in found[0][1].items():
        assert torch.equal(value, found[1][1][name]), name


def test_one_member_is_compared_after_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that a member's code changes while it trains is found as well."""

    class Change(Hook):
        stackable = True

        def after_train_epoch(self, runner: Runner) -> None:
            runner.members[1].model.masks["in"] = torch.ones(64)

    monkeypatch.setattr("trainyard.fused.verification.SHARE", float("inf"))
    same = {"_target_": Masked, "holder": "dict"}
    configs = [config(0, Masked) | {"model": same, "optim": {**config(0, Masked)["optim"], "lr": lr}} for lr in (1, 2)]
    configs = [values | {"hook": {"change": Change()}} for values in configs]
    with pytest.raises(Unfusable, match="register_buffer"):
        FusedRunner(configs).train()
