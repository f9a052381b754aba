"""Means over other windows, smoothing, and the formats of lines."""

import logging
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, Hook, Logger

BATCHES = 6


class Seen(Hook):
    """Every iteration's outputs."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.outputs.append({key: float(value) for key, value in outputs.items()})


def by_hand(values: Any, step: Any, window: Any, interval: Any) -> Any:
    """The mean at a point; `values` are pairs of an iteration and what it gave."""
    before = [(at, value) for at, value in values if at <= step]
    if window == "epoch":
        chosen = [value for at, value in before if (at - 1) // BATCHES == (step - 1) // BATCHES]
    elif window == "global":
        chosen = [value for _, value in before]
    elif isinstance(window, float):
        weights = [window ** (len(before) - 1 - index) for index in range(len(before))]
        return sum(w * value for w, (_, value) in zip(weights, before, strict=True)) / sum(weights)
    elif window is None:
        chosen = [value for at, value in before if (at - 1) // interval == (step - 1) // interval]
    else:
        chosen = [value for _, value in before[-window:]]
    return sum(chosen) / len(chosen) if chosen else None


WINDOWS = st.one_of(st.none(), st.integers(1, 20), st.sampled_from(["epoch", "global", 0.5, 0.9]))


def arguments(windows: Any) -> Any:
    return {
        "window": {name: it for name, it in windows.items() if it is not None and not isinstance(it, float)},
        "smoothing": {name: it for name, it in windows.items() if isinstance(it, float)},
    }


@settings(max_examples=25)
@given(loss=WINDOWS, norm=WINDOWS, interval=st.integers(1, 12), accumulate=st.integers(1, 3), at=st.integers(0, 17))
def test_points_are_means_over_the_windows_also_over_a_resume(
    make: Any, points: Any, interrupt_at: Any, loss: Any, norm: Any, interval: int, accumulate: int, at: int
) -> None:
    given = arguments({"loss": loss, "grad_norm": norm})
    seen = Seen()
    with tempfile.TemporaryDirectory() as folder:
        more = {"accumulate": accumulate, "clip_grad_norm": 1.0, "work_dir": folder, "resume": True}
        hooks = {"logger": Logger(interval, **given), "checkpoint": Checkpoint(), "seen": seen}
        if at:
            make(hooks | {"stop": interrupt_at(at)}, **more).train()
            hooks = {"logger": Logger(interval, **given), "checkpoint": Checkpoint(), "seen": seen}
        make(hooks, **more).train()
        found = points(Path(folder))
    for name, window in (("loss", loss), ("grad_norm", norm)):
        values = [(step, outputs[name]) for step, outputs in enumerate(seen.outputs, 1) if name in outputs]
        for step in [*range(interval, 18, interval), 18]:
            since = [value for when, value in values if step - interval < when <= step]
            if ("train/" + name, step) in found:
                expected = by_hand(values, step, window, interval)
                if expected is not None:
                    assert found["train/" + name, step] == pytest.approx(expected, rel=1e-5)
            else:
                assert not since or step == 18


def test_one_window_for_every_value(make: Any, points: Any, tmp_path: Path) -> None:
    seen = Seen()
    make({"logger": Logger(5, window="epoch"), "seen": seen}, work_dir=tmp_path, clip_grad_norm=1.0).train()
    for name in ("loss", "grad_norm"):
        values = [(step, outputs[name]) for step, outputs in enumerate(seen.outputs, 1)]
        for step in (5, 10, 15, 18):
            expected = by_hand(values, step, "epoch", 5)
            assert points(tmp_path)[f"train/{name}", step] == pytest.approx(expected, rel=1e-6)


def test_the_learning_rate_is_that_of_the_moment(make: Any, points: Any, tmp_path: Path) -> None:
    make({"logger": Logger(5, window="global")}, work_dir=tmp_path).train()
    assert {value for (name, _), value in points(tmp_path).items() if name == "train/lr"} == {0.01}


@pytest.mark.parametrize(
    ("by", "begins"),
    [
        ("epoch", ["epoch 1/3  iter 5/6", "epoch 2/3  iter 4/6", "epoch 3/3  iter 3/6", "epoch 3/3  iter 6/6"]),
        ("iter", ["iter 5/18", "iter 10/18", "iter 15/18", "iter 18/18"]),
        (None, ["epoch 1/3  iter 5/18", "epoch 2/3  iter 10/18", "epoch 3/3  iter 15/18", "epoch 3/3  iter 18/18"]),
    ],
)
def test_lines_by_epoch_and_by_iteration(
    make: Any, caplog: pytest.LogCaptureFixture, by: str | None, begins: Any
) -> None:
    with caplog.at_level(logging.INFO, "trainyard"):
        make({"logger": Logger(5, line_every=0, by=by)}).train()
    lines = [record.getMessage() for record in caplog.records if getattr(record, "of_progress", False)]
    assert [line.split("  loss ")[0] for line in lines] == begins
    assert all(line.split("  ")[-1].startswith("eta 0:") for line in lines)


def test_the_run_is_named_now_and_then(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "trainyard"):
        make({"logger": Logger(2, interval_exp_name=7)}, name="mine").train()
    assert [record.getMessage() for record in caplog.records].count("Run mine.") == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"window": 0}, "window: 0 is invalid. Expected an integer of at least 1, epoch, global, a mapping"),
        (
            {"window": "all"},
            "Expected an integer of at least 1, epoch, global, a mapping from names to such values, or null",
        ),
        ({"window": {"loss": 0}}, "window.loss: 0 is invalid. Expected an integer of at least 1, epoch or global."),
        ({"window": {"loss": "epochs"}}, "window.loss: 'epochs' is invalid"),
        ({"smoothing": 1.0}, "smoothing: 1.0 is invalid. Expected a number above 0 and below 1, or a mapping"),
        ({"smoothing": {"loss": 1.0}}, "smoothing.loss: 1.0 is invalid. Expected a number above 0 and below 1."),
        (
            {"smoothing": {"loss": 0.9}, "window": {"loss": 5}},
            "loss: 0.9 is invalid. Expected no value for loss, because",
        ),
        ({"smoothing": 0.9, "window": 5}, "smoothing: 0.9 is invalid. Expected null, because `window` is set"),
        ({"by": "epochs"}, "by: 'epochs' is invalid. Expected one of epoch, iter, or null for both"),
        ({"interval_exp_name": 0}, "interval_exp_name: 0 is invalid"),
    ],
)
def test_settings_that_cannot_work(settings: Any, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        Logger(**settings)
    assert told in str(error.value)
