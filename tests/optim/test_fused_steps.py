"""Options of conf/optim train every model that torch's default steps train."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from trainyard.config.build import locate
from trainyard.optim import build, from_config
from trainyard.step.clip import NoClip
from trainyard.step.precision import make_precision
from trainyard.step.step import Step

CONF = Path(__file__).parents[2] / "conf/optim"
MORE = {"sgd": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
                {"momentum": 0.9, "dampening": 0.5}], "rmsprop": [{"momentum": 0.9}]}  # fmt: skip
OTHERS = ("lbfgs", "sam", "model")  # tests/step/test_closure.py, tests/models/test_lightning.py
FILES = [file for file in sorted(CONF.glob("*.yaml")) if file.stem not in OTHERS]
CASES = [(file.stem, more) for file in FILES for more in MORE.get(file.stem, [{}])]


class Late(nn.Module):
    """A model of which a part takes no part in the first steps, and another part in every other one."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.late, self.now_and_then = (nn.Linear(4, 4, dtype=dtype) for _ in range(3))

    def forward(self, x: Tensor, step: int) -> Tensor:
        out: Tensor = self.first(x)
        if step >= 2:
            out = out + self.late(x)
        return out + self.now_and_then(x) if step % 2 else out


def ours(name: str, more: dict[str, Any], params: Any) -> torch.optim.Optimizer:
    return build(from_config(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), more)), params)


def plain(name: str, more: dict[str, Any], params: Any) -> torch.optim.Optimizer:
    """The optimizer of the same numbers whose switches are left to torch."""
    node: Any = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), more))
    kind = locate(node.pop("_target_"), "optim")
    numbers = {key: value for key, value in node.items() if key not in ("_partial_", "paramwise", "fused", "foreach")}
    return kind(params, **numbers)


@pytest.mark.parametrize(("name", "more"), CASES)
@pytest.mark.parametrize("by_step", [False, True])
def test_a_gradient_that_comes_late(name: str, more: dict[str, Any], by_step: bool) -> None:
    x = torch.randn(8, 8, 4, generator=torch.Generator().manual_seed(1))
    models = [Late(), Late()]
    optimizers = [make(name, more, model.parameters()) for make, model in zip((ours, plain), models, strict=True)]
    step = Step(
        lambda pair: {"loss": models[0](*pair).square().mean()},
        optimizers[0],
        make_precision("fp32", x.device),
        NoClip(),
    )
    for index in range(8):
        if by_step:
            step((x[index], index), index, 8)
        for model, optimizer in list(zip(models, optimizers, strict=True))[by_step:]:
            optimizer.zero_grad()
            model(x[index], index).square().mean().backward()
            optimizer.step()
        if index == 4:  # as a resume does
            optimizers[0].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for own, other in zip(*[model.parameters() for model in models], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_sparse_gradients(name: str, caplog: pytest.LogCaptureFixture) -> None:
    def model() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 2))

    models = [model(), model()]
    optimizers = [make(name, {}, each.parameters()) for make, each in zip((ours, plain), models, strict=True)]
    for index in range(4):
        for each, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            each(torch.tensor([index, 3])).square().mean().backward()
            optimizer.step()
    for own, other in zip(*[each.parameters() for each in models], strict=True):
        torch.testing.assert_close(own, other)
    assert caplog.text.count("does not support sparse gradients") == 1


def test_complex_parameters() -> None:
    models = [Late(torch.complex64), Late(torch.complex64)]
    optimizers = [
        make("sgd", {"momentum": 0.9}, model.parameters()) for make, model in zip((ours, plain), models, strict=True)
    ]
    for index in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.ones(2, 4, dtype=torch.complex64), index).abs().square().mean().backward()
            optimizer.step()
    for own, other in zip(*[model.parameters() for model in models], strict=True):
        torch.testing.assert_close(own, other)


def test_a_momentum_that_begins_with_a_step_that_fp16_skips() -> None:
    """torch's fused step leaves the buffer of such a parameter as it found the memory."""
    weight = nn.Parameter(torch.ones(4))
    optimizer = build(partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True), [weight])
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined] # as torch.amp.GradScaler says it
    weight.grad = torch.full((4,), float("inf"))
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]
    weight.grad = torch.ones(4)
    optimizer.step()
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [1.0] * 4
    assert weight.tolist() == pytest.approx([0.9] * 4)


def test_a_momentum_that_a_schedule_begins_with() -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = build(partial(torch.optim.SGD, lr=0.1, fused=True), weights)
    for index, momentum in enumerate((0.0, 0.0, 0.5, 0.5)):
        optimizer.param_groups[0]["momentum"] = momentum
        weights[0].grad = torch.ones(2)
        weights[1].grad = torch.ones(2) if index == 3 else None
        optimizer.step()
    assert weights[0].tolist() == pytest.approx([1 - 0.1 * (1 + 1 + 1 + 1.5)] * 2)
    assert weights[1].tolist() == pytest.approx([0.9] * 2)


def test_a_copy_steps_on() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = build(partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True), [weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    copied = copy.deepcopy(optimizer)
    (other,) = copied.param_groups[0]["params"]
    other.grad = torch.ones(2)
    copied.step()
    assert other.tolist() == pytest.approx([1 - 0.1 - 0.19] * 2)
    assert weight.tolist() == pytest.approx([0.9] * 2)
