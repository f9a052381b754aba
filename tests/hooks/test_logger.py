import logging
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.errors import ConfigError
from trainyard.hooks import Checkpoint, Hook, Logger
from trainyard.runner import IterBasedTrainLoop, checkpoint


class Seen(Hook):
    """Every iteration's outputs, and the learning rate under which it was made."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []
        self.rates: list[Any] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.outputs.append({key: float(value) for key, value in outputs.items()})
        self.rates.append(runner.optimizer.param_groups[0]["lr"])


def by_hand(seen: Any, interval: Any) -> Any:
    """What the journal should hold: the mean of each number over the iterations of a window that have it."""
    expected: dict[Any, Any] = {}
    for begin in range(0, len(seen.outputs), interval):
        window = seen.outputs[begin : begin + interval]
        columns = defaultdict(list)
        for outputs in window:
            for key, value in outputs.items():
                columns[key].append(value)
        step = begin + len(window)
        expected |= {(f"train/{key}", step): sum(values) / len(values) for key, values in columns.items()}
        expected["train/lr", step] = seen.rates[step - 1]
    return expected


def of_training(points: Any) -> Any:
    return {key: value for key, value in points.items() if key[0].startswith("train/")}


@settings(max_examples=15)
@given(
    interval=st.integers(1, 20),
    iterations=st.integers(1, 20),
    unit=st.sampled_from(["epoch", "iter"]),
    accumulate=st.integers(1, 3),
)
def test_points_are_means_over_windows_that_span_epochs(
    make: Any, points: Any, interval: int, iterations: int, unit: str, accumulate: int
) -> None:
    loop = {"loop": IterBasedTrainLoop(iterations)} if unit == "iter" else {}
    seen = Seen()
    with tempfile.TemporaryDirectory() as folder:
        hooks = {"logger": Logger(interval), "seen": seen}
        make(hooks, work_dir=folder, accumulate=accumulate, clip_grad_norm=1.0, **loop).train()
        assert of_training(points(Path(folder))) == pytest.approx(by_hand(seen, interval), rel=1e-6)


@pytest.mark.parametrize("at", [1, 4, 6, 7, 11])
def test_a_window_goes_on_where_the_run_was_interrupted(
    make: Any, points: Any, interrupt_at: Any, tmp_path: Path, at: int
) -> None:
    def hooks(**more: Any) -> Any:
        return {"logger": Logger(4), "checkpoint": Checkpoint(), **more}

    seen = Seen()
    make(hooks(seen=seen), epochs=2, work_dir=tmp_path / "whole").train()
    make(hooks(stop=interrupt_at(at)), epochs=2, work_dir=tmp_path / "parts").train()
    state = checkpoint.newest(tmp_path / "parts" / "checkpoints")[1]
    assert len(state["hooks"]["logger"]["window"]) == at % 4
    make(hooks(), epochs=2, work_dir=tmp_path / "parts", resume=True).train()
    expected = of_training(points(tmp_path / "whole"))
    assert of_training(points(tmp_path / "parts")) == expected == pytest.approx(by_hand(seen, 4), rel=1e-6)


@pytest.mark.gpu
def test_a_window_goes_on_on_the_device(make: Any, points: Any, interrupt_at: Any, tmp_path: Path) -> None:
    for stop in ({"stop": interrupt_at(3)}, {}):
        hooks = {"logger": Logger(4), "checkpoint": Checkpoint(), **stop}
        make(hooks, device="cuda", work_dir=tmp_path, resume=True).train()
    assert {step for name, step in points(tmp_path) if name == "train/loss"} == {4, 8, 12, 16, 18}


def test_the_windows_losses_stay_where_they_are(make: Any) -> None:
    class Look(Hook):
        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            assert all(isinstance(value, torch.Tensor) for entry in logger._window for value in entry.values())
            assert len(logger._window) == runner.iter % 10

    logger = Logger(10)
    Look.priority = "LOWEST"
    make({"logger": logger, "look": Look()}).train()


def _lines(caplog: pytest.LogCaptureFixture, of_progress: Any) -> Any:
    return [record for record in caplog.records if getattr(record, "of_progress", False) is of_progress]


class Clock(Hook):
    """An iteration takes so many seconds."""

    priority = "HIGHEST"

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 1.0) -> None:
        self.now = 0.0
        self.seconds = seconds
        for module in ("logger", "_time_left"):
            monkeypatch.setattr(f"trainyard.hooks.{module}.perf_counter", lambda: self.now)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any) -> None:
        self.now += self.seconds


def test_lines_of_text_are_at_least_so_far_apart(
    make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, "trainyard"):
        make({"clock": Clock(monkeypatch), "logger": Logger(1, line_every=4.5)}).train()
    lines = [record.getMessage().split("  ")[1] for record in _lines(caplog, of_progress=True)]
    assert lines == ["iter 5/18", "iter 10/18", "iter 15/18"]


def test_every_point_has_a_line_where_that_is_asked_for(
    make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, "trainyard"):
        make({"clock": Clock(monkeypatch), "logger": Logger(5, line_every=0)}).train()
    lines = [record.getMessage() for record in _lines(caplog, of_progress=True)]
    places = [tuple(line.split("  ")[:2]) for line in lines]
    steps = [(1, 5), (2, 10), (3, 15), (3, 18)]
    assert places == [(f"epoch {epoch}/3", f"iter {step}/18") for epoch, step in steps]
    assert all("loss 0." in line and "lr 0.01" in line for line in lines)
    assert [line.split("eta ")[1] for line in lines] == ["0:00:13", "0:00:08", "0:00:03", "0:00:00"]


def test_a_short_run_has_no_lines_of_progress(
    make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, "trainyard"):
        make({"clock": Clock(monkeypatch, 0.25), "logger": Logger(1)}).train()
    assert _lines(caplog, of_progress=True) == []


def test_validations_are_told_and_the_best_are_marked(
    make: Any, caplog: pytest.LogCaptureFixture, scripted: Any
) -> None:
    with caplog.at_level(logging.INFO, "trainyard"):
        runner = make({"logger": Logger()}, metrics={"loss": scripted([0.5, 0.75, 0.25])})
        runner.train()
        runner.metrics["loss"].values = [0.125]
        runner.val()
    told = [record.getMessage() for record in _lines(caplog, of_progress=False) if "val" in record.getMessage()]
    assert told == [
        "val  epoch 1  iter 6  loss 0.5000  (best)",
        "val  epoch 2  iter 12  loss 0.7500",
        "val  epoch 3  iter 18  loss 0.2500  (best)",
        "val  epoch 3  iter 18  loss 0.1250",
    ]


@pytest.mark.parametrize("interval", [0, -1, 2.5, "3"])
def test_an_interval_that_cannot_be(interval: float | str) -> None:
    with pytest.raises(ConfigError, match=r"interval: .* is invalid. Expected an integer of at least 1"):
        Logger(interval)
