"""Fused sweeps with `python train.py -m …` as a user runs them."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from same_run import points
from waiting import LIMIT, until

from trainyard.runner import checkpoint
from trainyard.sweep.manifest import Manifest

ROOT = Path(__file__).parents[2]
SWEEP = [
    "-m", "data=rings", "data.num_samples=300", "loop.max_epochs=3", "model.hidden=[8]", "tracker=none",
    "hydra.launcher.max_jobs=1",
]  # fmt: skip
POINTS = ["optim.lr=0.01,0.03", "seed=0,1"]

WAITS = """
import os, time
from pathlib import Path
from trainyard.hooks import Hook

class Waits(Hook):
    stackable = True

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        here = Path(__file__).parent
        if runner.iter == 5 and runner.members[0].work_dir is not None and not (here / "go").exists():
            (here / "pid").write_text(str(os.getpid()))
            while not (runner.interrupted or (here / "go").exists()):
                time.sleep(0.01)
"""
OFTEN = [
    "model.dropout=0.1", "hook.checkpoint.by=iter", "hook.checkpoint.interval=2", "hook.checkpoint.min_seconds=0",
]  # fmt: skip
HOOK = "+hook.waits._target_=waits.Waits"


@pytest.fixture
def start(tmp_path: Path) -> Any:
    (tmp_path / "waits.py").write_text(WAITS)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    path = os.pathsep.join(map(str, (ROOT / "src", tmp_path)))
    env = clean | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "150"}

    def start(directory: Any, *arguments: Any) -> Any:
        return Forked(
            [sys.executable, str(ROOT / "train.py"), *SWEEP, f"hydra.sweep.dir={directory}", *arguments],
            cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return start


@pytest.fixture
def sweep(start: Any) -> Any:
    def run(directory: Any, *arguments: Any) -> Any:
        process = start(directory, *arguments)
        out, err = process.communicate(timeout=LIMIT)
        return subprocess.CompletedProcess((), process.returncode, out, err)

    return run


def _wait_for(file: Any) -> Any:
    return int(until(lambda: file.exists() and file.read_text()))


def _states(folder: Any) -> Any:
    return {num: entry.state for num, entry in Manifest.open(folder).entries.items()}


def test_jobs_are_what_they_would_be_alone(sweep: Any, tmp_path: Path) -> None:
    alone = sweep("alone", *POINTS, "hydra.launcher.fuse=off")
    fused = sweep("fused", *POINTS, "hydra.launcher.fuse=4")
    assert alone.returncode == fused.returncode == 0, fused.stderr
    assert "#0-#3  a stack of 4 on one slot" in fused.stdout
    for num in range(4):
        ours, theirs = tmp_path / f"fused/{num}", tmp_path / f"alone/{num}"
        files = {str(file.relative_to(ours)) for file in ours.rglob("*")}
        assert files == {str(file.relative_to(theirs)) for file in theirs.rglob("*")} - {"output.log"}
        mine, its = points(ours), points(theirs)
        assert mine.keys() == its.keys()
        assert mine == pytest.approx(its, rel=1e-3, abs=1e-5)
        log, other = ((folder / "train.log").read_text().splitlines() for folder in (ours, theirs))
        assert sum("  epoch " in line for line in log) == sum("  epoch " in line for line in other) == 4


def test_a_member_that_diverges_fails_alone(sweep: Any, tmp_path: Path) -> None:
    result = sweep("s", "optim=sgd", "optim.lr=0.01,1e30", "hook=[default,nan_guard]", "hook.nan_guard.interval=1",
                   "hydra.launcher.fuse=2")  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "FAILED  #1 optim.lr=1e+30: The training failed: " in result.stdout
    assert _states(tmp_path / "s") == {0: "done", 1: "failed"}


def test_a_killed_stack_ends_as_if_it_had_not_been(start: Any, sweep: Any, tmp_path: Path) -> None:
    """First the stack is killed, then the sweep, which is continued under settings of another plan."""
    process = start("s", *POINTS, HOOK, *OFTEN, "hydra.launcher.fuse=4", "hydra.launcher.retries=1")
    pid = _wait_for(tmp_path / "pid")
    (tmp_path / "pid").unlink()
    os.kill(pid, signal.SIGKILL)
    _wait_for(tmp_path / "pid")
    process.kill()
    (tmp_path / "go").touch()
    out, _ = process.communicate(timeout=LIMIT)
    assert "retried  #0-#3: its process was killed by SIGKILL" in out
    continued = sweep("s", *POINTS, HOOK, *OFTEN, "hydra.launcher.fuse=off")
    assert continued.returncode == 0, continued.stderr
    assert "#0-#3  a stack of 4 on one slot" in continued.stdout
    undisturbed = sweep("undisturbed", *POINTS, HOOK, *OFTEN, "hydra.launcher.fuse=4")
    assert undisturbed.returncode == 0, undisturbed.stderr
    for num in range(4):
        assert points(tmp_path / f"s/{num}") == points(tmp_path / f"undisturbed/{num}")
        mine, its = (checkpoint.load(tmp_path / f"{name}/{num}/checkpoints/best.pt") for name in ("s", "undisturbed"))
        for key, tensor in its["model"].items():
            assert torch.equal(mine["model"][key], tensor), (num, key)


def test_an_interrupted_stack_is_finished_later(start: Any, sweep: Any, tmp_path: Path) -> None:
    process = start("s", *POINTS, HOOK, "hydra.launcher.fuse=4")
    _wait_for(tmp_path / "pid")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, err
    assert _states(tmp_path / "s") == dict.fromkeys(range(4), "interrupted")
    (tmp_path / "go").touch()
    finished = sweep("s", *POINTS, HOOK, "hydra.launcher.fuse=2")
    assert finished.returncode == 0, finished.stderr
    assert "#0-#3  a stack of 4 on one slot" in finished.stdout, "as recorded"
    records = [json.loads(line) for line in (tmp_path / "s/manifest.jsonl").read_text().splitlines()]
    assert Counter(record["num"] for record in records if record.get("state") == "done") == dict.fromkeys(range(4), 1)
    undisturbed = sweep("undisturbed", *POINTS, HOOK, "hydra.launcher.fuse=4")
    assert undisturbed.returncode == 0
    for num in range(4):
        assert points(tmp_path / f"s/{num}") == pytest.approx(points(tmp_path / f"undisturbed/{num}"), rel=1e-3)


ONE_AT_A_TIME = """
from trainyard.hooks import Hook

class Alone(Hook):
    def after_train_epoch(self, runner):
        (member,) = runner.members
"""


def test_what_cannot_be_fused_says_why(sweep: Any, tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(ONE_AT_A_TIME)
    result = sweep("s", *POINTS, "+hook.a._target_=alone.Alone")
    assert result.returncode == 0, result.stderr
    assert "#0-#3  one by one: hook.a (Alone) supports one member only" in result.stdout
    forced = sweep("t", *POINTS, "+hook.a._target_=alone.Alone", "hydra.launcher.fuse=4")
    assert forced.returncode == 2
    assert "hydra.launcher.fuse=4: #0-#3 cannot be stacked: hook.a (Alone)" in " ".join(forced.stderr.split())
    assert not (tmp_path / "t").exists()
