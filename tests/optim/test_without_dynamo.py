"""Optimizers without their wrappers compute the same, and torch._dynamo is never imported."""

import copy
import os
import sys
from typing import Any

import forked
import pytest
import torch
from torch import nn

from trainyard.optim import Lion, without_dynamo
from trainyard.step.clip import NoClip
from trainyard.step.precision import Precision
from trainyard.step.step import Step

KINDS = ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "Lion"]


def _kind(name: Any) -> Any:
    return Lion if name == "Lion" else getattr(torch.optim, name)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_bits_as_with_wrappers(name: Any) -> None:
    torch.manual_seed(0)
    wrapped_model = nn.Linear(4, 3)
    plain_model = copy.deepcopy(wrapped_model)
    wrapped = _kind(name)(wrapped_model.parameters(), lr=0.01)
    with without_dynamo.constructing():
        bare = _kind(name)(plain_model.parameters(), lr=0.01)
    step = without_dynamo.UnwrappedStep(bare)
    for _ in range(5):
        x = torch.randn(8, 4)
        for model in (wrapped_model, plain_model):
            model.zero_grad()
            model(x).square().mean().backward()
        wrapped.step()
        with torch.no_grad():
            step()
    for a, b in zip(wrapped_model.parameters(), plain_model.parameters(), strict=True):
        assert torch.equal(a, b)
    state = without_dynamo.method(bare, "state_dict")()
    assert state["param_groups"] == wrapped.state_dict()["param_groups"]
    without_dynamo.method(bare, "load_state_dict")(wrapped.state_dict())


def test_add_param_group_is_put_back() -> None:
    before = torch.optim.Optimizer.add_param_group
    with pytest.raises(ValueError, match="learning rate"), without_dynamo.constructing():
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=-1)
    assert torch.optim.Optimizer.add_param_group is before


def test_hooks_registered_on_the_optimizer_are_called() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = Step(lambda x: {"loss": model(x).sum()}, optimizer, Precision(), NoClip())
    calls = []
    step(torch.ones(3, 2), 0, 1)
    handle = optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    step(torch.ones(3, 2), 0, 1)
    handle.remove()
    step(torch.ones(3, 2), 0, 1)
    assert calls == ["pre", "post", "pre"]


def test_a_users_own_optimizer_keeps_its_wrappers() -> None:
    calls = []

    class Mine(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            calls.append("mine")
            return super().step(closure)

    optimizer = Mine([torch.zeros(1, requires_grad=True)], lr=0.1)
    without_dynamo.UnwrappedStep(optimizer)()
    assert calls == ["mine"]


TRAINING = """
import sys, tempfile
from trainyard.runner import Runner
work_dir = tempfile.mkdtemp()
for resume in (False, True):
    Runner(
        {"_target_": "trainyard.models.MLP", "in_features": "auto", "num_classes": "auto", "hidden": [8]},
        {"_target_": "trainyard.data.Rings", "num_samples": 200},
        {"_target_": "torch.optim.Adam", "_partial_": True, "fused": True},
        {"_target_": "trainyard.schedules.Schedule", "scheduler": {
            "_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "_partial_": True, "T_max": "auto"}},
        metrics={"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        loop={"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 2 + resume},
        work_dir=work_dir, resume=resume, device="cpu",
    ).train()
assert "torch._dynamo" not in sys.modules, "imported"
"""


STACK = """
import sys
from trainyard.fused.runner import FusedRunner
configs = [
    {
        "model": {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [8], "dropout": .5},
        "data": {"_target_": "trainyard.data.Rings", "num_samples": 200},
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "fused": True, "lr": rate},
        "metric": {"loss": {"_target_": "trainyard.metrics.CrossEntropy"}},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 2},
        "device": "cpu",
    }
    for rate in (0.1, 0.01)
]
FusedRunner(configs).train()
assert "torch._dynamo" not in sys.modules, "imported"
assert "torch.fx.experimental.symbolic_shapes" not in sys.modules, "imported"
"""


@pytest.mark.parametrize("program", [TRAINING, STACK], ids=["alone", "stack"])
def test_a_whole_training_does_not_import_dynamo(program: str) -> None:
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    done = forked.run([sys.executable, "-c", program], env=environment)
    assert done.returncode == 0, done.stderr
