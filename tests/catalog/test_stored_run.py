"""What the directory of a run says about it."""

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard.catalog import History, Point


def test_the_metrics_of_the_objective_s_split_are_those_of_its_best_validation(make_run: Any) -> None:
    run = make_run(accuracies=[0.5, 0.9, 0.7])
    assert run.best is not None
    assert run.best.point == Point(20, 2, 0.9)
    assert run.metrics == {"val/accuracy": 0.9, "val/loss": pytest.approx(0.1), "train/loss": 1 / 3}


def test_a_minimized_objective_is_best_where_it_is_lowest(make_run: Any) -> None:
    run = make_run(accuracies=[0.5, 0.9, 0.7], objective="val/loss", direction="minimize")
    assert run.best is not None
    assert (run.best.name, run.best.point.step) == ("val/loss", 20)


@given(st.lists(st.floats(allow_infinity=True), max_size=8), st.sampled_from(["maximize", "minimize"]))
def test_the_best_is_the_first_of_the_extreme_numbers_and_never_nan(values: Sequence[float], direction: str) -> None:
    history = History(series={"x": [Point(step, None, value) for step, value in enumerate(values)]})
    numbers = [value for value in values if not math.isnan(value)]
    best = history.best("x", direction)
    if not numbers:
        assert best is None
    else:
        extreme = max(numbers) if direction == "maximize" else min(numbers)
        assert best == Point(values.index(extreme), None, extreme)


@pytest.mark.parametrize(
    ("status", "state"),
    [("FINISHED", "finished"), ("FAILED", "failed"), ("KILLED", "interrupted"), ("RUNNING", "killed")],
)
def test_a_run_whose_process_is_gone_is_not_running(make_run: Any, status: str, state: str) -> None:
    assert make_run(status=status).state == state


def test_a_run_without_a_journal_waits(make_run: Any) -> None:
    run = make_run(accuracies=[])
    (run.directory / "metrics.jsonl").unlink()
    assert (run.state, run.best, run.metrics, run.epoch, run.step) == ("waiting", None, {}, None, 0)


def test_time_between_attempts_does_not_count(tmp_path: Path) -> None:
    lines = [
        '{"kind":"status","time":10.0,"status":"RUNNING"}',
        '{"kind":"metrics","time":14.0,"step":1,"values":{"a":1.0}}',  # killed
        '{"kind":"status","time":100.0,"status":"RUNNING"}',
        '{"kind":"status","time":103.0,"status":"FINISHED"}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert History.read(tmp_path / "metrics.jsonl").seconds == 7.0


def test_a_group_has_the_name_of_its_option_and_its_entries(make_run: Any) -> None:
    settings = make_run(seed=3).settings
    assert settings["model"] == "mlp"
    assert settings["model.hidden"] == [8]
    assert settings["optim.lr"] == 0.001
    assert settings["seed"] == 3


@pytest.mark.parametrize("text", ["", "][", "- a list", None])
def test_a_config_that_cannot_be_read_is_empty(make_run: Any, text: str | None) -> None:
    run = make_run()
    file = run.directory / "config.yaml"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    assert run.config == {}
    assert run.best is None


def test_a_run_is_running_while_another_process_writes_its_journal(make_run: Any) -> None:
    run = make_run(status="RUNNING")
    imports = "import sys; from trainyard.track import Journal"
    code = f"{imports}; journal = Journal(sys.argv[1]); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(run.directory)]  # record locks belong to a process
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert run.state == "running"
        process.communicate()
    assert run.state == "killed"
