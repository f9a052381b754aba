"""Every option of `conf/schedule`, and the example of the docs, in a training: what the optimizer's groups hold."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from trainyard.config.hydra_versions import VERSION_BASE
from trainyard.hooks import Checkpoint, Hook, ParamSchedule
from trainyard.runner import Runner

ROOT = Path(__file__).parents[2]
EPOCHS, BATCHES = 4, 5
ITERS = EPOCHS * BATCHES
QUICK = [
    *("data=rings", "data.num_samples=200", "data.batch_size=24", "model=mlp", "model.hidden=[4]", "tracker=none"),
    *("device=cpu", "work_dir=null", "hook=default", "~hook.checkpoint", "~hook.logger"),
]
LOOPS = {
    "epoch": [f"loop.max_epochs={EPOCHS}"],
    "iter": ["loop=iter", f"loop.max_iters={ITERS}", "loop.val_interval=10"],
}
OPTIMIZERS: dict[str, tuple[list[str], Any]] = {
    "sgd": (
        ["optim=sgd", "optim.lr=0.1", "optim.momentum=0.9", "optim.weight_decay=0.01"],
        partial(SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "adam": (
        ["optim=adam", "optim.lr=0.02", "optim.betas=[0.8,0.99]", "optim.weight_decay=0.03"],
        partial(Adam, lr=0.02, betas=(0.8, 0.99), weight_decay=0.03),
    ),
}
NUMBERS = ("lr", "momentum", "betas", "weight_decay")


def warmed(optimizer: Optimizer, n: int) -> LRScheduler:
    """The warm-up of 5 %, where it does not round to nothing."""
    units = min(round(0.05 * n), n - 1)
    if not units:
        return CosineAnnealingLR(optimizer, n)
    parts = [LinearLR(optimizer, 1e-3, total_iters=units), CosineAnnealingLR(optimizer, n - units)]
    return SequentialLR(optimizer, parts, [units])


BY_HAND: dict[str, Callable[[Optimizer, int], Any]] = {
    "constant": lambda o, n: LambdaLR(o, lambda _: 1.0),
    "step": lambda o, n: StepLR(o, max(1, round(0.3334 * n)), 0.1),
    "multistep": lambda o, n: MultiStepLR(o, [round(s * n) for s in (0.5, 0.75)], 0.1),
    "exponential": lambda o, n: ExponentialLR(o, 0.95),
    "cosine": lambda o, n: CosineAnnealingLR(o, n),
    "warmup_cosine": warmed,
    "poly": lambda o, n: PolynomialLR(o, n, 0.9),
    "onecycle": lambda o, n: OneCycleLR(o, o.param_groups[0]["lr"], total_steps=n),
}


class Held(Hook):
    """What the optimizer's group holds in every iteration."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []
        self.validated: list[float] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any) -> None:
        self.all.append(numbers_of(runner.optimizer))

    def after_val_epoch(self, runner: Any, metrics: dict[str, float]) -> None:
        self.validated.append(runner.members[0].latest("val/loss", "objective"))


def numbers_of(optimizer: Optimizer) -> dict[str, Any]:
    (group,) = optimizer.param_groups
    return {key: tuple(group[key]) if key == "betas" else group[key] for key in NUMBERS if key in group}


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), **VERSION_BASE):
        return compose("train", overrides=[*QUICK, *overrides])


def trained(cfg: Any, iters: int = ITERS) -> Held:
    held = Held()
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config["hook"]["held"] = held
    Runner.from_cfg(config).train()
    assert len(held.all) == iters
    return held


def stepped(make: Any, optimizer: Optimizer, length: int) -> list[dict[str, Any]]:
    scheduler = make(optimizer, length)
    rows = []
    for _ in range(length):
        rows.append(numbers_of(optimizer))
        optimizer.step()
        scheduler.step()
    return rows


def test_every_option_is_here() -> None:
    assert {path.stem for path in (ROOT / "conf" / "schedule").glob("*.yaml")} == {*BY_HAND, "plateau", "several"}


@pytest.mark.parametrize("optim", OPTIMIZERS)
@pytest.mark.parametrize("by", ["epoch", "iter"])
@pytest.mark.parametrize("option", BY_HAND)
def test_every_option_over_a_whole_run(option: str, by: str, optim: str) -> None:
    overrides, make = OPTIMIZERS[optim]
    loop = LOOPS["epoch" if optim == "sgd" else "iter"]
    held = trained(composed(f"schedule={option}", f"schedule.by={by}", *overrides, *loop))
    length = EPOCHS if by == "epoch" else ITERS
    rows = stepped(BY_HAND[option], make([torch.nn.Parameter(torch.ones(1))]), length)
    assert held.all == [row for row in rows for _ in range(ITERS // length)]


@pytest.mark.parametrize("param", ["momentum", "weight_decay"])
@pytest.mark.parametrize("option", ["step", "cosine", "poly", "warmup_cosine", "onecycle"])
def test_another_number_within_a_window(option: str, param: str) -> None:
    """The numbers of the window are those of torch's scheduler on the number alone."""
    overrides, make = OPTIMIZERS["adam" if option == "cosine" else "sgd"]
    window = ["schedule.by=iter", f"schedule.param={param}", "schedule.begin=4", "schedule.end=16"]
    held = trained(composed(f"schedule={option}", *window, *overrides, *LOOPS["epoch"]))
    before = numbers_of(make([torch.nn.Parameter(torch.ones(1))]))
    first = before["betas"][0] if "betas" in before and param == "momentum" else before[param]
    alone = SGD([torch.nn.Parameter(torch.ones(1))], lr=first)
    hand = partial(OneCycleLR, max_lr=first, total_steps=12) if option == "onecycle" else None
    make_alone = (lambda o, n: hand(o, cycle_momentum=False)) if hand else (lambda o, n: BY_HAND[option](o, 12))
    inside = [row["lr"] for row in stepped(make_alone, alone, 12)]
    if hand is None:
        inside.append(alone.param_groups[0]["lr"])  # the step into the window's end
    values = [first] * 4 + inside + [inside[-1]] * (ITERS - 4 - len(inside))
    expected: list[dict[str, Any]] = [
        {**before, "betas": (value, 0.99)} if "betas" in before and param == "momentum" else {**before, param: value}
        for value in values
    ]
    assert held.all == expected


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_several_over_a_whole_run(optim: str, loop: str) -> None:
    overrides, make = OPTIMIZERS[optim]
    held = trained(composed("schedule=several", "schedule.schedules.warmup.end=8", *overrides, *LOOPS[loop]))
    optimizer = make([torch.nn.Parameter(torch.ones(1))])
    decay = SGD([torch.nn.Parameter(torch.ones(1))], lr=optimizer.param_groups[0]["weight_decay"])
    warmup = LinearLR(optimizer, 1e-3, total_iters=8)
    by_epoch = [CosineAnnealingLR(optimizer, EPOCHS), CosineAnnealingLR(decay, EPOCHS)]
    expected = []
    for iteration in range(ITERS):
        if iteration:
            optimizer.step()
            if iteration <= 8:
                warmup.step()
            if iteration % BATCHES == 0:
                decay.step()
                for scheduler in by_epoch:
                    scheduler.step()
        expected.append({**numbers_of(optimizer), "weight_decay": decay.param_groups[0]["lr"]})
    assert held.all == expected
    assert len({row["weight_decay"] for row in held.all}) == EPOCHS
    assert len({row["lr"] for row in held.all}) > 8


def test_one_of_several_may_be_taken_out() -> None:
    held = trained(composed("schedule=several", "schedule.schedules.weight_decay=null", *LOOPS["epoch"]))
    assert len({row["weight_decay"] for row in held.all}) == 1


def test_plateau_over_a_whole_run() -> None:
    overrides, make = OPTIMIZERS["sgd"]
    settings = [
        "objective=val/loss",
        "direction=minimize",
        "schedule.patience=0",
        "schedule.threshold=0.5",
        "schedule.factor=0.5",
    ]
    held = trained(composed("schedule=plateau", *settings, *overrides, *LOOPS["epoch"]))
    optimizer = make([torch.nn.Parameter(torch.ones(1))])
    scheduler = ReduceLROnPlateau(optimizer, patience=0, threshold=0.5, factor=0.5)
    expected = []
    for value in held.validated:
        expected += [numbers_of(optimizer)] * BATCHES
        scheduler.step(value)
    assert held.all == expected
    assert held.all[-1]["lr"] < 0.1


def test_epochs_may_be_converted_to_iterations() -> None:
    overrides, make = OPTIMIZERS["sgd"]
    settings = ["schedule.convert_to_iter_based=true", "schedule.begin=1", "schedule.end=3"]
    held = trained(composed("schedule=cosine", *settings, *overrides, *LOOPS["epoch"]))
    rows = stepped(lambda o, n: CosineAnnealingLR(o, 10), make([torch.nn.Parameter(torch.ones(1))]), 11)
    assert held.all == [rows[0]] * 5 + rows + [rows[-1]] * 4


@pytest.mark.parametrize("at", [3, 5, 8, 13])
def test_a_killed_run_goes_on_in_every_one_of_several(tmp_path: Path, at: int) -> None:
    class Stop(Hook):
        def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
            if runner.iter == at:
                runner.interrupt()

    overrides, _ = OPTIMIZERS["adam"]
    cfg = composed("schedule=several", "schedule.schedules.warmup.end=8", *overrides, *LOOPS["epoch"])
    whole = trained(cfg)
    held = Held()
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    for stop in ({"stop": Stop()}, {}):
        hooks = {"schedule": ParamSchedule(), "held": held, "checkpoint": Checkpoint(), **stop}
        Runner.from_cfg(config | {"hook": hooks, "work_dir": str(tmp_path), "resume": True}).train()
    assert held.all == whole.all


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    """It is composed as a user's own experiment, and does what the page says."""
    page = (ROOT / "docs" / "optim.md").read_text()
    (example,) = re.findall(r"```yaml\n(# @package _global_\n[^`]*)```", page)
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text(example)
    overrides = [
        f"hydra.searchpath=[file://{tmp_path}]",
        "experiment=mine",
        *OPTIMIZERS["sgd"][0],
        "loop.max_epochs=12",
    ]
    held = trained(composed(*overrides, "schedule.schedules.warmup.end=20"), 12 * BATCHES)
    rates = [row["lr"] for row in held.all]
    assert rates[:21] == pytest.approx([0.1 * (0.001 + 0.999 * step / 20) for step in range(21)])
    assert rates[20::BATCHES] == pytest.approx([0.1] * 4 + [0.01] * 3 + [0.001])
    decays = [row["weight_decay"] for row in held.all[::BATCHES]]
    assert decays == pytest.approx([0.01] * 6 + [0.01 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)])
    assert len({row["momentum"] for row in held.all}) == 1
