"""Commands from another terminal, carried out by a sweep of real trainings."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from same_run import points
from waiting import LIMIT, until

from trainyard.runner import checkpoint
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.steering import CommandFolder
from trainyard.sweep.steering_cli import steer
from trainyard.track import read
from trainyard.track.shipped import Shipped

ROOT = Path(__file__).parents[2]
SWEEP = [
    "-m", "data=rings", "data.num_samples=300", "loop.max_epochs=3", "model.hidden=[8]", "tracker=none", "seed=0,1",
    "hydra.sweep.dir=s", "hydra.launcher.max_jobs=1", "+hook.waits._target_=waits.Waits",
]  # fmt: skip
WAITS = """
import time
from pathlib import Path
from trainyard.hooks import Hook
here = Path(__file__).parent

class Waits(Hook):
    stackable = True

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if runner.iter >= 5 and runner.members[0].work_dir is not None:
            deaf = (here / "deaf").exists()
            (here / f"waits{runner.members[0].work_dir.name}").touch()
            while not ((runner.interrupted and not deaf) or (here / "go").exists()):
                time.sleep(0.01)
"""


@pytest.fixture
def start(tmp_path: Path) -> Any:
    (tmp_path / "waits.py").write_text(WAITS)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    path = os.pathsep.join(map(str, (ROOT / "src", tmp_path)))
    env = clean | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "150"}

    def start(*more: str) -> Any:
        return Forked(
            [sys.executable, str(ROOT / "train.py"), *SWEEP, *more], cwd=tmp_path, env=env, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    return start


def state(folder: Path, num: int) -> str:
    """Return the state of a job, as the last line about it in the manifest has it."""
    found = "unknown"
    file = folder / "s/manifest.jsonl"
    for line in file.read_bytes().split(b"\n")[:-1] if file.exists() else ():
        record = json.loads(line)
        found = record["state"] if record["kind"] == "state" and record["num"] == num else found
    return found


@pytest.mark.parametrize("fuse", ["off", "2"])
def test_a_job_is_paused_and_resumed_and_another_stopped(start: Any, tmp_path: Path, fuse: str) -> None:
    process = start(f"hydra.launcher.fuse={fuse}")
    until(lambda: state(tmp_path, 0) == "running", process)
    assert "saves a checkpoint and pauses" in steer(tmp_path / "s", "pause", "0", wait=LIMIT)
    until(lambda: state(tmp_path, 0) == "paused", process)
    until(lambda: state(tmp_path, 1) == "running", process)
    assert "resumes when a slot is free" in steer(tmp_path / "s", "resume", "0", wait=LIMIT)
    until((tmp_path / "waits1").exists, process)  # before that, a signal ends it without a checkpoint
    steer(tmp_path / "s", "stop", "1", wait=LIMIT)
    until(lambda: state(tmp_path, 1) == "stopped", process)
    folder = CommandFolder(tmp_path / "s")
    for num, action in ((99, "stop"), (1, "pause"), (0, "clone")):
        changes = ["model.hidden=[16]"] if action == "clone" else []
        folder.give(action, num, changes, Manifest.open(tmp_path / "s").answered)
    until(lambda: len(Manifest.open(tmp_path / "s").answered) == 6, process)
    (tmp_path / "go").touch()
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    entries = Manifest.open(tmp_path / "s").entries
    assert {num: entry.state for num, entry in entries.items()} == {0: "done", 1: "stopped"}
    assert "command  stop #99: this sweep has no job #99" in out
    assert "command  pause #1: #1 is stopped" in out
    assert re.search(r"^stopped  #1 seed=1: Interrupted at iteration \d+\.$", out, re.MULTILINE), out
    last = json.loads((tmp_path / "s/1/checkpoints/last.json").read_text())["last"]
    told = (
        f"         checkpoint: {tmp_path}/s/1/checkpoints/{last}\n         to continue from it: trainyard sweep clone "
    )
    assert f"{told}{tmp_path}/s 1 KEY=VALUE\n" in out
    assert (
        "command  clone #0 model.hidden=[16]: model.hidden: [16] is invalid. Expected the value of the job from which"
        in out
    )
    undisturbed = start("hydra.sweep.dir=u", "hydra.launcher.fuse=off", "seed=0")
    assert undisturbed.communicate(timeout=LIMIT)
    if fuse == "off":
        assert points(tmp_path / "s/0") == points(tmp_path / "u/0"), "a pause changes no bit"
    again = start(f"hydra.launcher.fuse={fuse}")
    out, _ = again.communicate(timeout=LIMIT)
    assert "2 jobs, 1 already done, 1 stopped; 0 to run" in out


def test_the_run_of_a_job_that_is_stopped_while_it_is_paused_has_ended(start: Any, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    own = ["hydra.launcher.fuse=off", "tracker=mlflow", f"tracker.uri={uri}", f"tracker.wait={LIMIT}"]
    statuses = {}
    for num in (0, 1):  # paused by this head, and by the one before
        process = start(*own)
        if num == 0:
            until((tmp_path / "waits0").exists, process)
            steer(tmp_path / "s", "pause", "0", wait=LIMIT)
            until((tmp_path / "waits1").exists, process)
            steer(tmp_path / "s", "stop", "0", wait=LIMIT)
            steer(tmp_path / "s", "pause", "1", wait=LIMIT)
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, err
        statuses[num] = Shipped.load(tmp_path / f"s/{num}", uri)
        if num == 0:
            assert Shipped.load(tmp_path / "s/1", uri).sent_status == "FINISHED"
            steer(tmp_path / "s", "stop", "1")
    client = MlflowClient(uri)
    for num, shipped in statuses.items():
        assert state(tmp_path, num) == "stopped"
        run = client.get_run(str(shipped.run_id))
        assert (run.info.status, run.data.tags["trainyard.message"]) == ("KILLED", "stopped")


def test_a_member_of_a_population_remains_paused_until_it_is_resumed(start: Any, tmp_path: Path) -> None:
    own = [
        "hydra/sweeper=pbt", "hydra.sweeper.population=3", "hydra.sweeper.interval=1", "hydra.sweeper.quantile=0.34",
        "optim.lr=tag(log,interval(1e-3,1e-1))", "seed=0", "hydra.launcher.fuse=off",
    ]  # fmt: skip
    process = start(*own)
    until((tmp_path / "waits0").exists, process)  # in the second epoch
    steer(tmp_path / "s", "pause", "0", wait=LIMIT)
    until(lambda: state(tmp_path, 0) == "paused", process)
    (tmp_path / "go").touch()
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert [state(tmp_path, num) for num in range(3)] == ["paused", "done", "done"]
    assert out.count("resumed  #0") == 1
    how = f"trainyard sweep resume {tmp_path / 's'}"
    told = f"A user has paused #0. To resume the job, run `{how} 0`, and then run `{how}`."
    assert told in out

    process = start(*own)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert "3 jobs, 2 already done, 1 paused by a user; 0 to run" in out
    assert told in out
    assert state(tmp_path, 0) == "paused"

    steer(tmp_path / "s", "resume", "0")
    process = start(*own)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert state(tmp_path, 0) == "done"
    assert "A user has paused" not in out


def test_what_a_dead_head_was_asked_for_is_done_by_the_next(start: Any, tmp_path: Path) -> None:
    (tmp_path / "deaf").touch()
    process = start("hydra.launcher.fuse=off")
    until((tmp_path / "waits0").exists, process)  # before that, a signal ends it
    until(lambda: state(tmp_path, 0) == "running", process)
    steer(tmp_path / "s", "stop", "0", wait=LIMIT)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert state(tmp_path, 0) == "running"
    waits = steer(tmp_path / "s", "pause", "1")
    assert "No process is running this sweep." in waits
    process = start("hydra.launcher.fuse=off")
    process.communicate(timeout=LIMIT)
    assert (state(tmp_path, 0), state(tmp_path, 1)) == ("stopped", "paused")
    steer(tmp_path / "s", "resume", "1")
    (tmp_path / "go").touch()
    process = start("hydra.launcher.fuse=off")
    process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert (state(tmp_path, 0), state(tmp_path, 1)) == ("stopped", "done")


def test_a_clone_goes_on_from_a_checkpoint_with_another_value_through_a_dead_head(start: Any, tmp_path: Path) -> None:
    process = start("hydra.launcher.fuse=off")
    until(lambda: state(tmp_path, 0) == "running", process)
    until((tmp_path / "s/0/checkpoints/last.json").exists, process)
    told = steer(tmp_path / "s", "clone", "0", ["optim.lr=0.5"], wait=LIMIT)
    assert told == "Accepted: clone #0 optim.lr=0.5: #1000000 starts from epoch_0001.pt of #0."
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (tmp_path / "go").touch()
    process = start("hydra.launcher.fuse=off")
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    entries = Manifest.open(tmp_path / "s").entries
    assert {num: entry.state for num, entry in entries.items()} == {0: "done", 1: "done", 1_000_000: "done"}
    assert re.search(r"1000000 +0 +0\.5 ", out), "it is ranked"
    folder = tmp_path / "s/1000000"
    tags = [record["tags"] for record, _ in read(folder / "metrics.jsonl") if record["kind"] == "tags"]
    assert {"resume_override.optim.lr": "0.001 -> 0.5 at iteration 3"} in tags
    last = checkpoint.load(folder / "checkpoints/epoch_0003.pt")
    assert last["optimizer"]["param_groups"][0]["lr"] == 0.5
    assert min(step for _, step in points(folder)) > 3


def test_two_heads_in_one_directory(start: Any, tmp_path: Path) -> None:
    process = start("hydra.launcher.fuse=off")
    until(lambda: state(tmp_path, 0) == "running", process)
    _, err = start("hydra.launcher.fuse=off").communicate(timeout=LIMIT)
    assert "another process is running this sweep" in " ".join(err.split())
    (tmp_path / "go").touch()
    process.communicate(timeout=LIMIT)
    assert process.returncode == 0


def test_a_manifest_of_a_newer_version(start: Any, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/manifest.jsonl").write_text('{"kind": "manifest", "format": 3}\n')
    process = start()
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 2
    assert "was written by a newer version of Trainyard: its format is 3" in " ".join(err.split())
