"""The terminal during a training: one estimate, a bar of 80 columns, breakpoints, fewer lines."""

import logging
import os
import pdb
import sys
from typing import Any

import pytest

from trainyard import console
from trainyard.errors import ConfigError
from trainyard.hooks import Logger, Progress, _time_left
from trainyard.hooks._time_left import TimeLeft
from trainyard.runner import Runner
from trainyard.runner.hook import Hook


def runner(epochs: int = 6, **hooks: Any) -> Runner:
    return Runner.from_cfg(
        {
            "model": {"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [4]},
            "data": {"_target_": "trainyard.data.Rings", "num_samples": 60},
            "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
            "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": epochs},
            "device": "cpu",
        },
        hooks=hooks,
    )


def test_the_time_left_counts_what_was_done_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(_time_left, "perf_counter", lambda: now[0])
    left = TimeLeft(100)
    assert left.after(100, 100) == "unknown"
    now[0] = 30.0
    assert left.after(110, 90) == "0:04:30"
    assert left.after(200, 0) == "0:00:00"
    assert left.after(201, -1) == TimeLeft(0).after(5, None) == "unknown"


def lines(caplog: pytest.LogCaptureFixture, val_lines: Any) -> list[int]:
    caplog.clear()
    caplog.set_level(logging.INFO, "trainyard")
    run = runner(logger=Logger(val_lines=val_lines))
    run.train()
    return [record.args[1] for record in caplog.records if record.msg.startswith("%s  epoch") and record.args]  # type: ignore[misc]


def test_validation_lines_are_thinned_on_request(caplog: pytest.LogCaptureFixture) -> None:
    assert lines(caplog, "all") == [1, 2, 3, 4, 5, 6]
    assert lines(caplog, 0) == [1, 2, 3, 4, 5, 6]
    best = lines(caplog, "best")
    assert best[0] == 1
    assert best[-1] == 6
    assert lines(caplog, 1e9) == best  # the first is due; then those of the best, and the last
    for wrong in ("some", -1):
        with pytest.raises(ConfigError, match="val_lines"):
            Logger(val_lines=wrong)


class Recorded(Hook):
    """Keeps what the bar shows."""

    shown: list[str]

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.shown = []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        from rich.console import Console

        assert self.bar._bar is not None
        console = Console(width=200, color_system=None)
        with console.capture() as capture:
            console.print(self.bar._bar.get_renderable())
        self.shown.append(capture.get().rstrip("\n"))


def test_the_bar_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((80, 24)))
    bar = Progress(refresh=0.0)
    recorded = Recorded(bar)
    runner(epochs=3, progress=bar, recorded=recorded).train()
    assert recorded.shown
    assert all("loss" not in line or len(line.rstrip()) <= 80 for line in recorded.shown)
    assert sys.breakpointhook is sys.__breakpointhook__
    assert not console.live


def test_a_breakpoint_takes_the_bar_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)
    stopped: list[str] = []
    monkeypatch.setattr(pdb.Pdb, "set_trace", lambda self, frame: stopped.append(frame.f_code.co_name))

    class Break(Hook):
        def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
            if runner.iter == 1:
                breakpoint()
                assert not console.live

    runner(epochs=1, progress=Progress(), stop=Break()).train()
    assert stopped == ["after_train_iter"]
