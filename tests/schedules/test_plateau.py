"""A plateau lowers the learning rate when torch's own scheduler would."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from trainyard.errors import ConfigError
from trainyard.schedules import Plateau

CONF = Path(__file__).parents[2] / "conf" / "schedule" / "plateau.yaml"
VALUES = st.lists(st.floats(-10, 10) | st.sampled_from([float("nan"), float("inf"), 1.0]), max_size=40)


def optimizer_of() -> SGD:
    return SGD([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.5)])


def rates(optimizer: SGD) -> list[dict[str, Any]]:
    return [{"lr": group["lr"]} for group in optimizer.param_groups]


@given(
    values=VALUES,
    cut=st.integers(0, 40),
    mode=st.sampled_from(["min", "max"]),
    patience=st.integers(0, 3),
    cooldown=st.integers(0, 2),
    threshold_mode=st.sampled_from(["rel", "abs"]),
)
def test_equals_torch_and_resumes_anywhere(
    values: list[float], cut: int, mode: Any, patience: int, cooldown: int, threshold_mode: Any
) -> None:
    arguments: dict[str, Any] = {
        "factor": 0.5,
        "patience": patience,
        "cooldown": cooldown,
        "threshold_mode": threshold_mode,
        "min_lr": [1e-3, 1e-2],
    }
    real, seen = optimizer_of(), optimizer_of()
    torchs = ReduceLROnPlateau(seen, mode=mode, **arguments)
    plateau = Plateau(mode=mode, **arguments)
    plateau.bind(real, length=40)
    for number, value in enumerate(values):
        if number == cut:
            file = io.BytesIO()
            torch.save(plateau.state_dict(), file)
            file.seek(0)
            plateau = Plateau(mode=mode, **arguments)
            plateau.bind(real, length=40)
            plateau.load_state_dict(torch.load(file, weights_only=True))
        assert plateau.row(number) == rates(seen)
        plateau.observe(value)
        torchs.step(value)
    assert plateau.row(0) == plateau.row(10**6) == rates(seen)
    assert rates(real) == rates(optimizer_of())


@pytest.mark.parametrize(("direction", "mode", "falls"), [("maximize", None, True), ("minimize", None, False)])
@pytest.mark.parametrize("given", [None, "min", "max"])
def test_the_runs_direction_decides_unless_a_mode_is_given(direction: Any, mode: Any, falls: bool, given: Any) -> None:
    plateau = Plateau(mode=given, patience=1)
    plateau.bind(optimizer_of(), length=10, direction=direction)
    for value in (5.0, 4.0, 3.0, 2.0):  # good if less is better
        plateau.observe(value)
    lowered = plateau.row(0)[0]["lr"] < 0.1
    assert lowered == (falls if given is None else given == "max")


def test_the_option_has_torchs_defaults() -> None:
    node = OmegaConf.load(CONF)
    plateau = instantiate(node, _convert_="all")
    assert plateau.by is None
    assert plateau.monitor is None
    assert not plateau.constant
    plateau.bind(optimizer_of(), length=10, direction="minimize")
    fresh = ReduceLROnPlateau(optimizer_of())
    for key in ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lrs", "eps"):
        assert getattr(plateau._scheduler, key) == getattr(fresh, key)


def test_a_metric_may_be_a_tensor() -> None:
    plateau = Plateau(patience=0)
    plateau.bind(optimizer_of(), length=10)
    for _ in range(2):
        plateau.observe(torch.tensor(1.0))
    assert plateau.row(0) == [{"lr": 0.1 * 0.1}, {"lr": 0.5 * 0.1}]


def test_what_it_was_given_now_counts_after_a_resume() -> None:
    before = Plateau(patience=0, factor=0.5)
    before.bind(optimizer_of(), length=10)
    before.observe(1.0)
    after = Plateau(patience=0, factor=0.1)
    after.bind(optimizer_of(), length=10)
    after.load_state_dict(before.state_dict())
    after.observe(0.0)
    assert after.row(0)[0]["lr"] == 0.1 * 0.1


@pytest.mark.parametrize(
    ("make", "param", "lowered"),
    [
        (partial(SGD, momentum=0.9), "momentum", {"momentum": 0.45}),
        (partial(Adam, betas=(0.9, 0.99)), "momentum", {"betas": (0.45, 0.99)}),
        (partial(Adam, weight_decay=0.1), "weight_decay", {"weight_decay": 0.05}),
    ],
)
def test_another_number_than_the_learning_rate(make: Any, param: str, lowered: dict[str, Any]) -> None:
    states: list[dict[str, Any]] = []
    for values in ([1.0, 1.0], []):
        plateau = Plateau(param=param, patience=0, factor=0.5, mode="min")
        plateau.bind(make([torch.nn.Parameter(torch.ones(1))]), length=10)
        for state in states:
            plateau.load_state_dict(state)
        for value in values:
            plateau.observe(value)
        assert plateau.row(0) == [lowered]
        states.append(plateau.state_dict())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", "maximize"),
        ("factor", 1.0),
        ("factor", 0),
        ("factor", "half"),
        ("patience", -1),
        ("patience", 1.5),
        ("cooldown", -1),
        ("threshold", -1e-4),
        ("threshold_mode", "relative"),
        ("min_lr", -1),
        ("min_lr.1", [0, "x"]),
        ("eps", None),
    ],
)
def test_what_cannot_work(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Plateau(**{key.partition(".")[0]: value})
    assert caught.value.key == key


def test_what_cannot_work_with_this_run() -> None:
    with pytest.raises(ConfigError, match="min_lr"):
        Plateau(min_lr=[0.0]).bind(optimizer_of(), length=10)
    with pytest.raises(ConfigError, match="direction"):
        Plateau().bind(optimizer_of(), length=10, direction="max")
