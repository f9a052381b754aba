"""Initial weights, and the operations of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainyard.models.initialize import initialize

pytest.importorskip("mmengine", reason="MMEngine is not installed: bash scripts/test_openmmlab.sh")
from mmengine.analysis import get_model_complexity_info
from mmengine.model import initialize as their_initialize


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


KAIMING = {"weight": {"_target_": "kaiming_normal", "mode": "fan_out", "nonlinearity": "relu"}, "bias": 0}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "Kaiming", "layer": "Conv2d"}, {"Conv2d": KAIMING}),
    ({"type": "Constant", "layer": "BatchNorm2d", "val": 2}, {"BatchNorm2d": {"weight": 2, "bias": 0}}),
    ({"type": "Xavier", "layer": "Linear"}, {"Linear": {"weight": "xavier_normal", "bias": 0}}),
    (
        {"type": "Normal", "layer": "Conv2d", "std": 0.01},
        {"Conv2d": {"weight": {"_target_": "normal", "std": 0.01}, "bias": 0}},
    ),
    (
        {"type": "Uniform", "layer": "Linear", "a": -1, "b": 2},
        {"Linear": {"weight": {"_target_": "uniform", "a": -1, "b": 2}, "bias": 0}},
    ),
]


@pytest.mark.parametrize(("init_cfg", "rules"), CASES, ids=[str(init_cfg["type"]) for init_cfg, _ in CASES])
def test_initial_weights(init_cfg: dict[str, Any], rules: dict[str, Any]) -> None:
    torch.manual_seed(0)
    own, other = net(), net()
    other.load_state_dict(own.state_dict())
    torch.manual_seed(1)
    initialize(own, rules)
    torch.manual_seed(1)
    their_initialize(other, init_cfg)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-6, atol=1e-7, msg=name)


def test_a_truncated_normal_distribution() -> None:
    """Theirs is drawn by code of their own, so it is the same in distribution alone."""
    own, other = nn.Linear(500, 500), nn.Linear(500, 500)
    initialize(own, {"Linear": {"weight": {"_target_": "trunc_normal", "std": 1.0}, "bias": 0}})
    their_initialize(other, {"type": "TruncNormal", "layer": "Linear", "std": 1.0})
    for layer in (own, other):
        assert layer.weight.std().item() == pytest.approx(0.88, rel=0.02)
        assert layer.weight.abs().max() <= 2
        assert not layer.bias.any()


def test_their_flops_are_multiplications_with_an_addition() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    theirs = get_model_complexity_info(model, (3, 8, 8), show_table=False, show_arch=False)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 8, 8))
    assert counter.get_total_flops() == 2 * theirs["flops"]
