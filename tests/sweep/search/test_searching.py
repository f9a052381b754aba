"""A search as a user starts it: killed and continued, it ends as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from forked import Forked, run
from waiting import LIMIT, until

from trainyard.runner import checkpoint
from trainyard.sweep.manifest import Manifest
from trainyard.track import read

ROOT = Path(__file__).parents[3]
SMALL = [
    "tracker=none", "hydra.launcher.threads_per_job=1", "hydra.launcher.max_jobs=2", "loop.max_epochs=4",
    "data.batch_size=256",
]  # fmt: skip
SEARCH = [
    "-m", "hydra/sweeper=search", "hydra/sweeper/pruner=asha", "hydra.sweeper.order=job", "hydra.sweeper.n_trials=5",
    "hydra.sweeper.pruner.eta=2", "hydra.sweeper.sampler.n_startup_trials=2", "optim.lr=tag(log,interval(1e-4,1e-1))",
    "optim.weight_decay=tag(log,interval(1e-6,1e-2))", "model.hidden=[8],[16],[32]",
]  # fmt: skip


def command(*more: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *SMALL, *more]


def environment() -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "HYDRA"))}
    return clean | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "150"}


def records(folder: Path) -> list[dict[str, Any]]:
    file = folder / "manifest.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def decisions(folder: Path) -> list[Any]:
    found: list[Any] = []
    for record in records(folder):
        if record["kind"] == "job":
            found.append((record["num"], record["overrides"], record["rungs"], record["note"]))
        elif record["kind"] == "queued" and record["why"] == "promoted":
            found.append(record["units"])
    return found


def points(folder: Path) -> Any:
    return {
        (key, record["step"]): value
        for record, _ in read(folder / "metrics.jsonl")
        for key, value in record.get("values", {}).items()
        if "time" not in key
    }


def test_killed_twice_it_ends_with_the_suggestions_promotions_and_bits_of_the_undisturbed_one(tmp_path: Path) -> None:
    done = run([*command(*SEARCH), "hydra.sweep.dir=undisturbed"], LIMIT, cwd=tmp_path, env=environment())
    assert done.returncode == 0, done.stderr
    expected = tmp_path / "undisturbed"
    ends = len(records(expected))
    for share in (0.3, 0.6):
        process = Forked(
            [*command(*SEARCH), "hydra.sweep.dir=killed"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        until(lambda: len(records(tmp_path / "killed")) >= share * ends or process.poll() is not None)  # noqa: B023
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    done = run([*command(*SEARCH), "hydra.sweep.dir=killed"], LIMIT, cwd=tmp_path, env=environment())
    assert done.returncode == 0, done.stderr

    found = tmp_path / "killed"
    assert decisions(found) == decisions(expected)
    assert any(isinstance(each, list) for each in decisions(found)), "some were promoted"
    entries = [Manifest.open(folder).entries for folder in (found, expected)]
    assert entries[0].keys() == entries[1].keys() == set(range(5))
    for num, entry in entries[0].items():
        other = entries[1][num]
        assert (entry.state, entry.objective, entry.error) == (other.state, other.objective, other.error)
        ours, theirs = found / str(num), expected / str(num)
        assert points(ours) == points(theirs)
        names = {file.name for file in (ours / "checkpoints").iterdir()}
        assert names == ({"best.pt"} if entry.state == "pruned" else names | {"epoch_0004.pt"})
        for name in ["best.pt", *(["epoch_0004.pt"] if entry.state == "done" else [])]:
            mine, its = (checkpoint.load(folder / "checkpoints" / name) for folder in (ours, theirs))
            assert mine["model"].keys() == its["model"].keys()
            assert all(torch.equal(mine["model"][key], tensor) for key, tensor in its["model"].items()), (num, name)
    assert Counter(entry.state for entry in entries[0].values()).keys() == {"done", "pruned"}

    # Another search is refused there, and says in what it differs.
    another = [*command(*SEARCH), "hydra.sweep.dir=killed", "hydra/sweeper/sampler=random"]
    refused = run([line for line in another if "n_startup" not in line], LIMIT, cwd=tmp_path, env=environment())
    assert refused.returncode == 2
    assert "killed was begun with sampler: " in refused.stderr
    assert "TPESampler" in refused.stderr
    assert "RandomSampler" in refused.stderr
