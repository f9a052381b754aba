"""Every option builds and trains, says what it cannot use, and does without fused where torch does."""

from __future__ import annotations

import inspect
import logging
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from trainyard.errors import ConfigError
from trainyard.optim import Lion, build

CONF = Path(__file__).parents[2] / "conf" / "optim"
OTHERS = {
    "lbfgs",
    "sam",
    "muon",
    "model",
}  # tests/step/test_closure.py, test_muon.py, tests/models
OPTIONS = sorted({path.stem for path in CONF.glob("*.yaml")} - OTHERS)
FUSED = {"sgd", "adam", "adamw", "adagrad"}


def from_conf(option: str, **changes: Any) -> Any:
    return instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{option}.yaml"), changes), _convert_="all")


def mlp(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).to(dtype)


def train(model: torch.nn.Module, optimizer: Optimizer, steps: int = 25) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    x = torch.randn(64, 4, generator=generator).to(dtype)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_options() -> None:
    assert set(OPTIONS) == FUSED | {"rmsprop", "nadam", "lion"}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_trains(option: str) -> None:
    model = mlp()
    optimizer = build(from_conf(option), model.parameters())
    losses = train(model, optimizer)
    assert losses[-1] < losses[0]
    assert optimizer.defaults.get("fused") is (True if option in FUSED else None)
    assert bool(optimizer.defaults["foreach"]) is (option not in FUSED)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_its_classes_defaults(option: str) -> None:
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
    assert isinstance(node, dict)
    taken = inspect.signature(get_class(node.pop("_target_"))).parameters
    assert node.pop("_partial_") is True
    assert node.pop("paramwise") is None
    left_to_the_code = {"params", "capturable", "differentiable", "decoupled_weight_decay"}
    left_to_the_code |= {"foreach"} if "fused" in taken else set()
    if option == "nadam":
        left_to_the_code.remove("decoupled_weight_decay")
    assert set(node) == set(taken) - left_to_the_code
    for name, value in node.items():
        if name not in ("fused", "foreach"):
            default = taken[name].default
            assert value == (list(default) if isinstance(default, tuple) else default), name


@pytest.mark.parametrize("option", sorted(set(OPTIONS) - FUSED))
def test_foreach_where_it_is_faster_unless_one_says(option: str) -> None:
    small, large = [torch.nn.Parameter(torch.ones(256, width)) for width in (256, 512)]
    for params, foreach in (
        ([small], True),
        ([("weight", small)], True),
        ([{"params": iter([small])}], True),
        ([{"params": small}], True),
        ([large], None),
        ([{"params": [small]}, {"params": [large]}], None),
    ):
        optimizer = build(from_conf(option), params)
        assert optimizer.defaults["foreach"] is foreach
        assert all(group["params"] for group in optimizer.param_groups)
    for said in (True, False):
        for params in ([small], [large]):
            assert build(from_conf(option, foreach=said), params).defaults["foreach"] is said


@pytest.mark.parametrize("make", [SGD, Adam, AdamW, Adagrad])
def test_fused_follows_the_loop(make: Any) -> None:
    results = []
    for fused in (True, False):
        model = mlp(torch.float64)
        train(model, build(partial(make, lr=1e-2, fused=fused), model.parameters()))
        results.append([param.detach() for param in model.parameters()])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("make", [SGD, Adam, AdamW, Adagrad])
def test_parameters_that_fused_refuses(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    def params() -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))]

    with caplog.at_level(logging.WARNING):
        optimizer = build(partial(make, lr=0.1, fused=True), iter(params()))
    assert "fused" in caplog.text
    assert optimizer.defaults["fused"] is None
    assert len(optimizer.param_groups[0]["params"]) == 2
    for param in optimizer.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer = build(partial(make, lr=0.1, fused=True), [{"params": iter(params()), "lr": 0.2}])
    assert len(optimizer.param_groups[0]["params"]) == 2
    assert optimizer.param_groups[0]["fused"] is None  # a group keeps its own numbers and nothing of the first try
    assert optimizer.param_groups[0]["lr"] == 0.2


def test_fused_stays_where_it_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        named = mlp(dtype).named_parameters()
        assert build(partial(AdamW, fused=True, amsgrad=True, betas=[0.8, 0.9]), named).defaults["fused"] is True
    assert not caplog.records


def test_building_changes_no_parameter() -> None:
    model = mlp()
    before = [param.detach().clone() for param in model.parameters()]
    build(from_conf("adamw"), model.parameters())
    torch.testing.assert_close([param.detach() for param in model.parameters()], before, rtol=0, atol=0)
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_trains_on_cuda(option: str) -> None:
    device = torch.device("cuda")
    model = mlp().to(device)
    optimizer = build(from_conf(option), model.parameters())
    x = torch.randn(64, 4, device=device)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert all(param.isfinite().all() for param in model.parameters())


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (SGD, "lr", -1),
        (SGD, "momentum", -0.5),
        (SGD, "weight_decay", -1),
        (SGD, "nesterov", True),
        (Adam, "lr", -1),
        (Adam, "lr", "fast"),
        (Adam, "lr", None),
        (Adam, "betas", [0.9, 1.0]),
        (Adam, "betas", [1.5, 0.9]),
        (Adam, "eps", -1e-8),
        (AdamW, "weight_decay", -0.1),
        (RMSprop, "alpha", -1),
        (RMSprop, "momentum", -1),
        (Adagrad, "lr_decay", -1),
        (Adagrad, "initial_accumulator_value", -1),
        (NAdam, "momentum_decay", -1),
        (torch.optim.Muon, "weight_decay", -1),
        (torch.optim.Muon, "lr", -1),
        (torch.optim.Adadelta, "rho", 2),
        (Lion, "lr", -1),
    ],
)
def test_bad_numbers(make: Any, key: str, value: Any) -> None:
    numbers = {key: value, "fused": True} if "fused" in inspect.signature(make).parameters else {key: value}
    with pytest.raises(ConfigError) as caught:
        build(partial(make, **numbers), [torch.nn.Parameter(torch.ones(2, 2))])
    assert caught.value.key == key
    assert caught.value.given == value
    assert str(caught.value.under("optim")).startswith(f"optim.{key}: ")


def test_switches_that_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="cannot be `True` together") as caught:
        build(partial(AdamW, fused=True, foreach=True), mlp().parameters())
    assert caught.value.key == "fused"


def test_refusals_that_are_about_no_argument() -> None:
    with pytest.raises(ConfigError, match="empty parameter list") as caught:
        build(partial(Adam), [])
    assert caught.value.under("optim").key == "optim"


def test_mistakes_of_the_code_stay_what_they_are() -> None:
    with pytest.raises(TypeError, match="unexpected keyword"):
        build(partial(Adam, learning_rate=1), [torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(TypeError):
        build(partial(Adam), ["weight"])


@pytest.mark.parametrize(
    "numbers", [{"lr": math.inf}, {"lr": 0.1, "weight_decay": math.inf}, {"lr": 0.1, "eps": math.inf}]
)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_a_number_that_is_not_finite(kind: Any, numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"inf is invalid. Expected a finite number") as caught:
        build(partial(kind, **numbers), [torch.nn.Parameter(torch.zeros(2))])
    assert caught.value.key == list(numbers)[-1]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.LBFGS])
def test_an_integer_that_torch_cannot_represent(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"Expected an integer of at most 64 bits, or a float") as caught:
        build(partial(kind, lr=10**30), [torch.nn.Parameter(torch.zeros(2))])
    assert caught.value.key == "lr"
