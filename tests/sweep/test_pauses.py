"""Jobs that report, pause and are promoted, whatever is killed meanwhile: successive halving on real trainings."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked
from halving import SWEEPER, arguments
from same_run import points
from waiting import LIMIT, until

from trainyard.runner import checkpoint
from trainyard.sweep.manifest import Manifest

ROOT = Path(__file__).parents[2]
RATES = [0.001, 0.01, 0.03, 0.1]
RUNG = 2
SWEEP = [
    "-m", "data=rings", "data.num_samples=300", "loop.max_epochs=4", "model.hidden=[8]", "model.dropout=0.1",
    "tracker=none", "hydra.launcher.threads_per_job=1", "+hook.slow._target_=slow.Slow", *arguments(RUNG, RATES),
]  # fmt: skip
SLOW = """
import time
from pathlib import Path
from trainyard.hooks import Hook
here = Path(__file__).parent

class Slow(Hook):
    stackable = True

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        if (here / "slow").exists():
            time.sleep(0.02)
"""


@pytest.fixture
def start(tmp_path: Path) -> Any:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "hydra_plugins/halving_sweeper").mkdir(parents=True)
    (tmp_path / "hydra_plugins/halving_sweeper/__init__.py").write_text(SWEEPER)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT / "tests/helpers", tmp_path)))
    env = clean | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "150"}

    def start(directory: str, *more: str) -> Any:
        return Forked(
            [sys.executable, str(ROOT / "train.py"), *SWEEP, f"hydra.sweep.dir={directory}", *more], cwd=tmp_path,
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    return start


def records(folder: Path) -> list[dict[str, Any]]:
    file = folder / "manifest.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def below(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def agents(process: Any) -> list[int]:
    found = []
    for child in below(process.pid):
        with suppress(OSError):
            if b"agent_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def kill(process: Any, target: str) -> None:
    """Kill the head, its process group, its agent, or a worker; nothing where there is none such at the moment."""
    agent = agents(process)
    pids = {
        "head": [process.pid],
        "group": [process.pid],
        "agent": agent[:1],
        "worker": [pid for each in agent for pid in below(each)][-1:],
    }[target]
    for pid in pids:
        with suppress(ProcessLookupError):
            (os.killpg if target == "group" else os.kill)(pid, signal.SIGKILL)


def tried(start: Any, folder: Path, directory: str, *more: str) -> None:
    """Run a sweep to its end, through four kills at drawn moments."""
    draw = random.Random()
    for target in draw.sample(["head", "group", "agent", "worker", "head"], 4):
        process = start(directory, *more)
        seen, further = len(records(folder)), draw.randint(1, 12)
        until(lambda: len(records(folder)) >= seen + further or process.poll() is not None)  # noqa: B023
        time.sleep(draw.uniform(0, 0.1))
        kill(process, target)
        if target in ("agent", "worker"):
            break_at = len(records(folder)) + draw.randint(1, 6)
            until(lambda: len(records(folder)) >= break_at or process.poll() is not None)  # noqa: B023
            kill(process, "group")
        process.communicate()
    process = start(directory, *more)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err


def test_a_job_of_several_devices_pauses_and_is_promoted(start: Any, tmp_path: Path) -> None:
    process = start(
        "w", "strategy=ddp", "strategy.devices=2", "hydra.launcher.max_jobs=2", "+hydra.sweeper.rates=[0.1]"
    )
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    kinds = [(record["kind"], record.get("state"), record.get("at")) for record in records(tmp_path / "w")]
    told = [each for each in kinds if each[0] == "report" or each[1] in ("running", "paused", "done")]
    states = [("state", state, None) for state in ("running", "paused", "running", "done")]
    assert told == [states[0], ("report", None, RUNG), *states[1:]]
    assert {step for key, step in points(tmp_path / "w/0") if key.startswith("val/")} == {3, 6, 9, 12}


@pytest.mark.parametrize("fuse", ["off", "4"])
def test_killed_at_random_it_ends_as_if_it_had_not_been(start: Any, tmp_path: Path, fuse: str) -> None:
    more = [f"hydra.launcher.fuse={fuse}", "hydra.launcher.retries=9"]
    process = start("undisturbed", *more)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert ("a stack of 4" in out) == (fuse == "4")
    queued = [record["units"] for record in records(tmp_path / "undisturbed") if record.get("why") == "promoted"]
    promoted = [unit for units in queued for unit in units]  # a job that pauses after the other is promoted after it
    assert (len(promoted), len(promoted[0])) == ((1, 2) if fuse == "4" else (2, 1))
    (tmp_path / "slow").touch()
    tried(start, tmp_path / "s", "s", *more)

    entries = [Manifest.open(tmp_path / name).entries for name in ("s", "undisturbed")]
    found, expected = ({num: entry.state for num, entry in each.items()} for each in entries)
    assert found == expected, records(tmp_path / "s")
    assert Counter(expected.values()) == {"paused": 2, "done": 2}
    reports = [(record["num"], record["at"]) for record in records(tmp_path / "s") if record["kind"] == "report"]
    assert sorted(reports) == [(num, RUNG) for num in range(4)], "each is told once"
    for num, state in expected.items():
        ours, theirs = tmp_path / f"s/{num}", tmp_path / f"undisturbed/{num}"
        assert points(ours) == points(theirs)
        last = checkpoint.read_last(ours / "checkpoints")[-1]
        assert last == ("epoch_0002.pt" if state == "paused" else "epoch_0004.pt")
        for name in (last, "best.pt"):
            mine, its = (checkpoint.load(folder / "checkpoints" / name) for folder in (ours, theirs))
            for key, tensor in its["model"].items():
                assert torch.equal(mine["model"][key], tensor), (num, name, key)
        if state == "paused":
            assert {file.name for file in (ours / "checkpoints").iterdir()} == {last, "best.pt", "last.json"}
