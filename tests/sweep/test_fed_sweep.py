"""Stacks of a sweep that further jobs join while they train, as a user runs them; killed, too."""

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
from trainyard.sweep.steering_cli import steer
from trainyard.track import read

ROOT = Path(__file__).parents[2]
SWEEP = [
    "-m", "data=rings", "data.num_samples=300", "model.hidden=[8]", "model.dropout=0.1", "tracker=none",
    "hydra.launcher.max_jobs=1", "hydra.launcher.fuse=2", "hook.checkpoint.min_seconds=0", "seed=0,1",
    "+hook.waits._target_=waits.Waits",
]  # fmt: skip
LOOPS = {
    "epoch": ["loop.max_epochs=2,4,3", "+hook.waits.at=11"],
    "early": ["loop.max_epochs=2,60,3", "+hook.waits.at=5"],
    "iter": [
        "loop=iter", "loop.max_iters=14,28,21", "loop.val_interval=7", "data.batch_size=32", "data.drop_last=true",
        "+hook.waits.at=17",
    ],
}  # fmt: skip
WAITS = """
import os, time
from pathlib import Path
from trainyard.hooks import Hook

class Waits(Hook):
    stackable = own_places = True

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        here = Path(__file__).parent
        if runner.iter == self.at and runner.members[0].work_dir is not None and not (here / "go").exists():
            (here / "waits").touch()
            while not (here / "go").exists():
                time.sleep(0.01)

    def refill(self, runner, members): ...
    def copy_lane(self, source, target): ...
"""


@pytest.fixture
def start(tmp_path: Path) -> Any:
    (tmp_path / "waits.py").write_text(WAITS)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    path = os.pathsep.join(map(str, (ROOT / "src", tmp_path)))
    env = clean | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "150"}

    def start(directory: str, loop: str, *more: str) -> Any:
        sweep = [*SWEEP, *LOOPS[loop], f"hydra.sweep.dir={directory}", *more]
        return Forked(
            [sys.executable, str(ROOT / "train.py"), *sweep], cwd=tmp_path, env=env,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    return start


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def spans(folder: Path) -> dict[int, list[tuple[int, int]]]:
    """Return the lanes and widths in which each job has trained, as they were recorded."""
    found: dict[int, list[tuple[int, int]]] = {}
    for task in [task for record in records(folder) if record["kind"] == "decisions" for task in record["tasks"]]:
        for num, lane in zip(task["nums"], task.get("lanes", ()), strict="lanes" in task):
            own = found.setdefault(num, [])
            if own[-1:] != [(lane, task["width"])]:
                own.append((lane, task["width"]))
    return found


def begun(folder: Path) -> dict[int, int]:
    """Return the iteration from which each job has trained in its first lane, as it was recorded."""
    found: dict[int, int] = {}
    for task in [task for record in records(folder) if record["kind"] == "decisions" for task in record["tasks"]]:
        for num, at in zip(task["nums"], task.get("iters", ()), strict="iters" in task):
            found.setdefault(num, at)
    return found


@pytest.mark.parametrize("loop", ["epoch", "iter"])
def test_killed_it_goes_on_in_the_recorded_lanes_with_the_same_bits(start: Any, tmp_path: Path, loop: str) -> None:
    """Six jobs of three lengths in two lanes; killed when some have joined, and continued.

    In the loop by iterations they have joined within an epoch of the data, which has five batches.
    """
    process = start("killed", loop)
    until(lambda: (tmp_path / "waits").exists() or process.poll() is not None)
    before = records(tmp_path / "killed")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (tmp_path / "go").touch()
    joined = [record["nums"] for record in before if record["kind"] == "joined"]
    assert joined, "while the first ones train"
    outputs = {}
    for name in ("killed", "undisturbed"):
        process = start(name, loop)
        outputs[name], err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, err
        assert "Traceback" not in "".join(file.read_text() for file in (tmp_path / name / "stacks").glob("*.log"))
        ended = Counter(each["num"] for each in records(tmp_path / name) if each.get("state") == "done")
        assert ended == dict.fromkeys(range(6), 1)
    assert "joined   #2" in outputs["undisturbed"]
    assert ": 2 lanes\n" in outputs["undisturbed"]
    if loop == "iter":
        assert begun(tmp_path / "undisturbed") == dict.fromkeys(range(6), 0)
        assert all(at % 7 == 0 for at in begun(tmp_path / "killed").values())
    lanes, expected = spans(tmp_path / "killed"), spans(tmp_path / "undisturbed")
    assert lanes.keys() == expected.keys() == set(range(6))
    alike = [num for num in range(6) if lanes[num] == expected[num]]
    assert {0, 1} <= set(alike)
    for num in alike:
        mine, its = points(tmp_path / f"killed/{num}"), points(tmp_path / f"undisturbed/{num}")
        assert mine == its, num
        files = [checkpoint.newest(tmp_path / f"{name}/{num}/checkpoints") for name in ("killed", "undisturbed")]
        states = [found[1]["model"] for found in files if found is not None]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[1]), num
    for num in range(6):  # what trained in another lane is equal up to rounding
        mine, its = points(tmp_path / f"killed/{num}"), points(tmp_path / f"undisturbed/{num}")
        losses = {key for key in its if "loss" in key[0]}
        assert {key: mine[key] for key in losses} == pytest.approx({key: its[key] for key in losses}, rel=1e-3), num


def state(folder: Path, num: int) -> str:
    return next((each["state"] for each in reversed(records(folder)) if each.get("num") == num and "state" in each), "")


@pytest.mark.parametrize("action", ["stop", "pause"])
def test_one_job_is_asked_to_end_and_the_others_train_on(start: Any, tmp_path: Path, action: str) -> None:
    """Its lane is given to the next job; the process stays. A job that pauses goes on later, where it stood."""
    process = start("asked", "early", *(["hook.checkpoint.save_last=false"] if action == "stop" else []))
    until((tmp_path / "waits").exists, process)
    until(lambda: state(tmp_path / "asked", 1) == "running", process)
    steer(tmp_path / "asked", action, "1", wait=LIMIT)
    (tmp_path / "go").touch()
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    entries = Manifest.open(tmp_path / "asked").entries
    expected = {"stop": "stopped", "pause": "paused"}[action]
    assert {num: entry.state for num, entry in entries.items()} == dict.fromkeys(range(6), "done") | {1: expected}
    assert out.count("started ") == 1
    assert "divided" not in out
    lanes = spans(tmp_path / "asked")
    assert lanes[1] == [(1, 2)]
    assert {lane for num in (2, 3) for lane, width in lanes[num] if width == 2} == {0, 1}, "its lane among them"
    trained = max(step for (name, step) in points(tmp_path / "asked/1") if name == "train/loss")
    assert trained < 180
    if action == "stop":
        told = [record for record, _ in read(tmp_path / "asked/1/metrics.jsonl") if record["kind"] == "status"]
        assert told[-1]["status"] == "KILLED"
        newest = checkpoint.newest(tmp_path / "asked/1/checkpoints")
        assert newest is not None
        assert newest[1]["iter"] >= trained, "an interrupted job is saved without save_last, too"
    else:
        assert trained % 3 == 0, "at the end of an epoch"
        steer(tmp_path / "asked", "resume", "1")
        process = start("asked", "early")
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, err
        assert state(tmp_path / "asked", 1) == "done"
        process = start("alone", "early", "hydra.launcher.fuse=off")
        process.communicate(timeout=LIMIT)
        mine, its = points(tmp_path / "asked/1"), points(tmp_path / "alone/1")
        losses = {key for key in its if "loss" in key[0]}
        assert {key: mine[key] for key in losses} == pytest.approx({key: its[key] for key in losses}, rel=1e-3)
