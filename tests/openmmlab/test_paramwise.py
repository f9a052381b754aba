"""Parameter groups: those of MMEngine's constructor, for models and rules drawn at random."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, AdamW

from trainyard.errors import ConfigError
from trainyard.optim import build

pytest.importorskip("mmengine", reason="MMEngine is not installed: bash scripts/test_openmmlab.sh")
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """MMEngine logs every option of every parameter."""
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    yield
    MMLogger.get_current_instance().setLevel(logging.INFO)


class Scaled(nn.Module):
    """Parameters of no layer of torch, one of them called `bias`."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.bias = nn.Parameter(torch.zeros(1, 3))
        self.unbias = nn.Parameter(torch.zeros(3))


LAYERS: list[Any] = [
    *(partial(nn.Linear, 4, 2), partial(nn.Linear, 4, 2, bias=False), Scaled),
    *(partial(nn.Conv2d, 4, 4, 3, groups=groups) for groups in (1, 2, 4)),
    *(partial(nn.Conv2d, 1, 2, 3), partial(nn.Conv1d, 4, 4, 3), partial(nn.ConvTranspose2d, 4, 4, 2)),
    *(partial(nn.BatchNorm1d, 4), partial(nn.BatchNorm2d, 4), partial(nn.SyncBatchNorm, 4), partial(nn.LayerNorm, 4)),
    *(
        partial(nn.GroupNorm, 2, 4),
        partial(nn.InstanceNorm2d, 4, affine=True),
        partial(nn.BatchNorm2d, 4, affine=False),
    ),
    *(partial(nn.MultiheadAttention, 4, 2), partial(nn.LSTM, 2, 3), partial(nn.Embedding, 5, 2), nn.PReLU),
]
OTHERS: list[Any] = [partial(nn.RMSNorm, 4), partial(nn.Conv1d, 4, 4, 3, groups=4)]
"""Kinds that the rules for layers that normalize, and for depthwise convolutions, know here alone."""

layers = st.sampled_from(LAYERS).map(lambda make: make())
trees = st.recursive(layers, lambda inner: st.lists(inner, min_size=1, max_size=4).map(lambda own: nn.Sequential(*own)))


@st.composite
def models(draw: Any) -> nn.Module:
    model = nn.Module()
    for name in draw(st.lists(st.sampled_from(["backbone", "neck", "head", "bias", "norm1"]), min_size=1, unique=True)):
        model.add_module(name, draw(trees))
    if draw(st.booleans()):
        model.register_parameter("temperature", nn.Parameter(torch.ones(1)))
    for parameter in model.parameters():
        parameter.requires_grad_(draw(st.integers(0, 9)) > 0)
    return model


FACTORS = st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0])
KINDS = ("bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "dwconv_decay_mult", "flat_decay_mult")


@st.composite
def rules(draw: Any, names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {kind: draw(FACTORS) for kind in KINDS if draw(st.booleans())}
    parts = sorted({name[begin:end] for name in names for begin, end in [(0, 4), (-6, None), (2, 9), (0, None)]})
    if parts and draw(st.booleans()):
        options = st.fixed_dictionaries(
            {}, optional={"lr_mult": FACTORS, "decay_mult": FACTORS, "lr": FACTORS, "maximize": st.booleans()}
        )
        found["custom_keys"] = draw(st.dictionaries(st.sampled_from(parts), options, max_size=4))
    return found


def by_parameter(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the numbers of the parameters that are trained; without rules, theirs holds the others too."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: {
            name: value
            for name, value in group.items()
            if name not in ("params", "name", "lr_mult", "decay_mult", "foreach")
        }
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    }


def theirs(model: nn.Module, kind: str, numbers: dict[str, Any], paramwise: dict[str, Any]) -> Any:
    wrapper = {"optimizer": {"type": kind, **numbers}, "paramwise_cfg": copy.deepcopy(paramwise)}
    return by_parameter(build_optim_wrapper(model, wrapper).optimizer, model)


def ours(model: nn.Module, kind: type, numbers: dict[str, Any], paramwise: dict[str, Any]) -> Any:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return by_parameter(build(partial(kind, **numbers, paramwise=paramwise), trained, model), model)


@settings(max_examples=120)
@given(model=models(), data=st.data())
def test_every_parameter_has_their_numbers(model: nn.Module, data: Any) -> None:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        return
    paramwise = data.draw(rules(names))
    numbers = {"lr": 0.1, "weight_decay": 0.01}
    kind = data.draw(st.sampled_from([SGD, AdamW]))
    assert ours(model, kind, numbers, paramwise) == theirs(model, kind.__name__, numbers, paramwise)


@pytest.mark.parametrize("make", OTHERS)
def test_kinds_that_the_rules_know_here_alone(make: Any) -> None:
    model, numbers = nn.Sequential(make(), nn.Linear(4, 4)), {"lr": 0.1, "weight_decay": 0.01}
    paramwise = {"norm_decay_mult": 0.0, "dwconv_decay_mult": 0.0}
    mine, other = (by(model, kind, numbers, paramwise) for by, kind in ((ours, SGD), (theirs, "SGD")))
    assert mine["0.weight"]["weight_decay"] == 0
    assert other["0.weight"]["weight_decay"] == 0.01


def test_tied_parameters() -> None:
    """There any parameter of two names is an error without `bypass_duplicate`, here only one whose rules differ."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    numbers = {"lr": 0.1, "weight_decay": 0.01}
    differing = {"custom_keys": {"1.": {"lr_mult": 0.1}}}
    for paramwise in (differing, {"bias_lr_mult": 2.0}):
        both = paramwise | {"bypass_duplicate": True}
        assert ours(model, SGD, numbers, both) == theirs(model, "SGD", numbers, both)
        with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
            theirs(model, "SGD", numbers, paramwise)
    with pytest.raises(ConfigError, match="bypass_duplicate"):
        ours(model, SGD, numbers, differing)
    assert ours(model, SGD, numbers, {"bias_lr_mult": 2.0})["1.bias"]["lr"] == 0.2
