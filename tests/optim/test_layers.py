"""Learning rates that decay from layer to layer."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from trainyard.errors import ConfigError
from trainyard.optim import build


class Net(nn.Module):
    """An embedding, three blocks, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)


def rates(model: nn.Module, **rules: Any) -> dict[str, tuple[float, float]]:
    made = build(partial(torch.optim.AdamW, lr=1.0, weight_decay=0.5, paramwise=rules), list(model.parameters()), model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = made.param_groups
    return {names[id(each)]: (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]}


def test_each_layer_has_less_than_the_one_behind_it() -> None:
    found = {name: lr for name, (lr, _) in rates(Net(), layer_decay=0.5).items()}
    assert found["embedding.weight"] == 0.5**4
    assert [found[f"blocks.{number}.weight"] for number in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert found["norm.weight"] == found["head.bias"] == 1


def test_other_rules_hold_beside_it() -> None:
    rules = {
        "layer_decay": 0.5,
        "norm_decay_mult": 0.0,
        "bias_lr_mult": 2.0,
        "custom_keys": {"head.weight": {"lr": 3.0}},
    }
    found = rates(Net(), **rules)
    assert found["norm.weight"] == (1, 0)
    assert found["blocks.2.bias"] == (1, 0.5)
    assert found["head.weight"] == (3, 0.5)


def test_layers_by_name() -> None:
    found = rates(Net(), layer_decay=0.1, layers=["blocks.[01]", "blocks.2"])
    assert found["blocks.0.weight"][0] == found["blocks.1.bias"][0] == pytest.approx(0.01)
    assert found["blocks.2.weight"][0] == pytest.approx(0.1)
    assert found["embedding.weight"][0] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("model", "rules", "message"),
    [
        (Net(), {"layer_decay": 0.0}, "layer_decay: 0.0 is invalid"),
        (
            Net(),
            {"layer_decay": 0.5, "layers": ["block"]},
            "layers: 'block' is invalid. Expected a glob that matches .* Did you mean 'blocks'",
        ),
        (Net(), {"layers": ["blocks.0"]}, "Expected null, because layer_decay is null"),
        (nn.Linear(2, 2), {"layer_decay": 0.5}, "Linear has no ModuleList or Sequential"),
    ],
)
def test_what_cannot_be(model: nn.Module, rules: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rates(model, **rules)


def test_the_layers_of_timm_are_the_same() -> None:
    try:
        timm = pytest.importorskip("timm", exc_type=ImportError)
    except RuntimeError:
        pytest.skip("torchvision of another torch")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
    theirs = importlib.import_module("timm.optim").param_groups_layer_decay(model, weight_decay=0.5, layer_decay=0.7)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    wanted = {names[id(each)]: group["lr_scale"] for group in theirs for each in group["params"]}
    found = {name: lr for name, (lr, _) in rates(model, layer_decay=0.7).items()}
    for name in ("norm.weight", "norm.bias"):  # timm counts the norm behind the blocks to the last of them
        assert wanted.pop(name) == pytest.approx(0.7 * found.pop(name))
    assert found == pytest.approx(wanted)
