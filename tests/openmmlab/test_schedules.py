"""Learning rates of every iteration: each scheduler of MMEngine, in windows, after a warm-up, by either unit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import BATCHES, ours, theirs
from torch.optim import SGD, lr_scheduler

from trainyard.schedules import CosineAnnealingLR, Plateau, PolynomialLR, Schedule, Several

RULES = {"custom_keys": {"net.3": {"lr_mult": 0.1}}}
_runs = count()


def translated(config: dict[str, Any], length: int, units: int = 1) -> Schedule:
    """Return what MMEngine's scheduler is here.

    It makes its last step into `end - 1`, where ours makes it into `end`; those that count its length reach their end
    there, one step sooner.

    Args:
        config: of MMEngine's scheduler, without `type`'s default arguments.
        length: of the run, in the scheduler's unit.
        units: iterations in an epoch, for one by epoch that is stepped by iteration.
    """
    kind, begin, end = config["type"], config.get("begin", 0) * units, config.get("end", length) * units
    steps = end - begin
    numbers = {name: value for name, value in config.items() if name in ("factor", "power", "gamma", "eta_min")}
    numbers |= {name: value for name, value in config.items() if name in ("eta_min_ratio", "start_factor")}
    make: Any = {
        "ConstantLR": partial(lr_scheduler.ConstantLR, total_iters=steps - 1),
        "LinearLR": partial(lr_scheduler.LinearLR, total_iters=steps - 1),
        "PolyLR": partial(PolynomialLR, total_iters=steps - 1),
        "CosineAnnealingLR": partial(CosineAnnealingLR, T_max=config.get("T_max", steps // units) * units),
        "StepLR": partial(lr_scheduler.StepLR, step_size=config.get("step_size", 1) * units),
        "MultiStepLR": partial(
            lr_scheduler.MultiStepLR, milestones=[place * units for place in config.get("milestones", [1])]
        ),
        "ExponentialLR": lr_scheduler.ExponentialLR,
        "OneCycleLR": partial(
            lr_scheduler.OneCycleLR, max_lr=config.get("eta_max"), total_steps=steps, cycle_momentum=False
        ),
    }[kind]
    by: Any = "epoch" if config["by_epoch"] and units == 1 else "iter"
    last = None if end == length * units else end - 1
    return Schedule(partial(make, **numbers), by=by, begin=begin, end=last)


def rates(tmp_path: Path, configs: Sequence[dict[str, Any]], schedule: Any, **run: Any) -> tuple[Any, Any]:
    """Return the learning rates here and there, of two groups."""
    number = next(_runs)
    expected = theirs(tmp_path / f"{number}a", schedulers=configs, wrapper={"paramwise_cfg": RULES}, **run)
    optim = partial(SGD, lr=0.1, paramwise=RULES)
    found = ours(tmp_path / f"{number}b", optim=optim, schedule=schedule, **run)
    assert len(found.rates) == len(expected.rates)
    return by_group(found.rates), by_group(expected.rates)


def by_group(rows: list[list[float]]) -> list[list[float]]:
    """Return the different columns; MMEngine has a group for every parameter."""
    return sorted(map(list, {tuple(column) for column in zip(*rows, strict=True)}))


def assert_equal(found: Any, expected: Any) -> None:
    assert len(found) == len(expected)
    for own, other in zip(found, expected, strict=True):
        assert own == pytest.approx(other, rel=1e-9, abs=1e-15)


FLOORS = st.sampled_from([{}, {"eta_min": 0.003}, {"eta_min_ratio": 0.05}])
MAIN: Any = st.one_of(
    st.builds(lambda power, eta_min: {"type": "PolyLR", "power": power, "eta_min": eta_min},
              st.sampled_from([0.9, 1.0, 2.0]), st.sampled_from([0.0, 0.004])),
    st.builds(lambda floor: {"type": "CosineAnnealingLR", **floor}, FLOORS),
    st.builds(lambda floor, half: {"type": "CosineAnnealingLR", "T_max": half, **floor}, FLOORS, st.integers(2, 4)),
    st.builds(lambda size: {"type": "StepLR", "step_size": size, "gamma": 0.5}, st.integers(1, 3)),
    st.builds(lambda at: {"type": "MultiStepLR", "milestones": at, "gamma": 0.1},
              st.lists(st.integers(1, 8), min_size=1, max_size=3, unique=True).map(sorted)),
    st.just({"type": "ExponentialLR", "gamma": 0.9}),
    st.just({"type": "ConstantLR", "factor": 0.3}),
    st.just({"type": "LinearLR", "start_factor": 0.2}),
)  # fmt: skip


@st.composite
def windows(draw: Any, length: int) -> dict[str, int]:
    begin = draw(st.integers(0, length - 2))
    end = draw(st.integers(begin + 2, length))
    return {} if draw(st.booleans()) else {"begin": begin, "end": end}


@settings(max_examples=25)
@given(data=st.data(), main=MAIN, by_epoch=st.booleans(), loop_by_epoch=st.booleans(), epochs=st.integers(3, 7))
def test_each_scheduler_in_a_window(
    data: Any, main: dict[str, Any], by_epoch: bool, loop_by_epoch: bool, epochs: int, tmp_path: Path
) -> None:
    by_epoch = by_epoch and loop_by_epoch  # an epoch of its iteration loop is the whole run
    length = epochs if by_epoch else epochs * BATCHES
    config = main | data.draw(windows(length)) | {"by_epoch": by_epoch}
    run: Any = {"length": epochs if loop_by_epoch else epochs * BATCHES, "by_epoch": loop_by_epoch}
    assert_equal(*rates(tmp_path, [config], translated(config, length), **run))


@settings(max_examples=25)
@given(main=MAIN, by_epoch=st.booleans(), warm_by_epoch=st.booleans(), warm=st.integers(2, 4), together=st.booleans())
def test_after_a_warm_up(
    main: dict[str, Any], by_epoch: bool, warm_by_epoch: bool, warm: int, together: bool, tmp_path: Path
) -> None:
    """Together and of two units, they take turns there in the order of the units, which shows at a floor."""
    epochs = 8
    if together and by_epoch != warm_by_epoch:
        main = {name: value for name, value in main.items() if not name.startswith(("eta_min", "T_max"))}
    begin = (
        0 if together else warm if by_epoch == warm_by_epoch else -(-warm // BATCHES) if by_epoch else warm * BATCHES
    )
    first = {"type": "LinearLR", "start_factor": 0.1, "end": warm, "by_epoch": warm_by_epoch}
    later = main | {"begin": begin, "by_epoch": by_epoch}
    lengths = {True: epochs, False: epochs * BATCHES}
    several = Several([translated(each, lengths[each["by_epoch"]]) for each in (first, later)])
    assert_equal(*rates(tmp_path, [first, later], several, length=epochs))


@settings(max_examples=15)
@given(main=MAIN.filter(lambda config: config["type"] != "ExponentialLR"))
def test_converted_to_iterations(main: dict[str, Any], tmp_path: Path) -> None:
    epochs = 5
    config = main | {"by_epoch": True}
    converted = config | {"convert_to_iter_based": True}
    assert_equal(*rates(tmp_path, [converted], translated(config, epochs, BATCHES), length=epochs))


@pytest.mark.parametrize("kind", ["CosineAnnealingLR", "StepLR", "MultiStepLR"])
def test_the_option_that_converts(kind: str, tmp_path: Path) -> None:
    numbers: dict[str, Any] = {"CosineAnnealingLR": {"T_max": 4}, "StepLR": {"step_size": 2}}.get(
        kind, {"milestones": [1, 3]}
    )
    config = {"type": kind, **numbers, "by_epoch": True, "convert_to_iter_based": True}
    schedule = Schedule(partial(getattr(lr_scheduler, kind), **numbers), by="epoch", convert_to_iter_based=True)
    assert_equal(*rates(tmp_path, [config], schedule, length=4))


def test_a_converted_gamma(tmp_path: Path) -> None:
    """There it multiplies at every iteration, here once for all iterations of an epoch."""
    config = {"type": "ExponentialLR", "gamma": 0.5, "by_epoch": True, "convert_to_iter_based": True}
    schedule = Schedule(partial(lr_scheduler.ExponentialLR, gamma=0.5), by="epoch", convert_to_iter_based=True)
    found, expected = rates(tmp_path, [config], schedule, length=2)
    assert found[1][BATCHES] == pytest.approx(0.05)
    assert expected[1][BATCHES] == pytest.approx(0.1 * 0.5**BATCHES)


@pytest.mark.parametrize("three_phase", [False, True])
def test_one_cycle(three_phase: bool, tmp_path: Path) -> None:
    config = {"type": "OneCycleLR", "eta_max": 0.2, "by_epoch": False, "three_phase": three_phase}
    cycle = partial(
        lr_scheduler.OneCycleLR, max_lr=0.2, total_steps="auto", cycle_momentum=False, three_phase=three_phase
    )
    assert_equal(*rates(tmp_path, [config], Schedule(cycle, by="iter"), length=6))


@pytest.mark.parametrize("warm", [0, 2, 5])
@pytest.mark.parametrize(("rule", "mode"), [("less", "min"), ("greater", "max")])
def test_plateau_after_a_warm_up(warm: int, rule: str, mode: Any, tmp_path: Path) -> None:
    score = [0.5, 0.6, 0.55, 0.5, 0.5, 0.4, 0.7, 0.7]
    plateau = {"type": "ReduceOnPlateauLR", "monitor": "score", "rule": rule, "factor": 0.5, "patience": 1}
    configs: Any = [{"type": "LinearLR", "start_factor": 0.1, "end": warm + 1, "by_epoch": False}] if warm else []
    schedule = Plateau("val/score", mode, factor=0.5, patience=1, warmup=warm, warmup_factor=0.1, by="iter")
    found, expected = rates(tmp_path, [*configs, plateau], schedule, length=8, score=score)
    assert_equal(found, expected)
    assert len(set(found[0][warm + 1 :])) > 2
