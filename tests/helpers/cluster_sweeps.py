"""Sweeps on a cluster, of jobs that are in their middle for as long as a test needs them there."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
JOBS = ["optim.lr=1e-3,1e-2", "seed=0,1"]
LONG = [
    "loop.max_epochs=15",
    "hook.checkpoint.interval=1",
    "hook.checkpoint.min_seconds=0.3",
    "+hook.slow._target_=slow_epochs.SlowEpochs",
]
"""More than a minute for each job until the file `go` beside the sweep's directory is there, then a moment."""


LIMIT = 600
"""Seconds after which what hangs is given up; no assertion on how long anything takes."""


def output(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=LIMIT)
    return text


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    until = time.monotonic() + LIMIT
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen"
        if process is not None and process.poll() is not None:
            pytest.fail(f"the sweep ended: {output(process)}")
        time.sleep(0.05)
    return found


def records(directory: Path) -> list[Any]:
    path = directory / "manifest.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def bits(directory: Path) -> Any:
    """The last weights of each job."""
    found = {}
    for job in sorted(path for path in directory.iterdir() if path.name.isdecimal()):
        last = json.loads((job / "checkpoints" / "last.json").read_text())["last"]
        found[job.name] = torch.load(job / "checkpoints" / last, weights_only=True)["model"]
    return found


def assert_same(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for job in one:
        torch.testing.assert_close(one[job], other[job], rtol=0, atol=0)


def ends(directory: Path) -> dict[int, int]:
    """How often each job is recorded as done."""
    found: dict[int, int] = {}
    for record in records(directory):
        if record["kind"] == "state" and record["state"] == "done":
            found[record["num"]] = found.get(record["num"], 0) + 1
    return found


def begun(directory: Path, num: int) -> bool:
    """Whether a job has a checkpoint."""
    return (directory / str(num) / "checkpoints" / "last.json").exists()


def slots(directory: Path, kind: str) -> int:
    """How many slots have been `gained` or `lost` so far."""
    return sum(len(record[kind]) for record in records(directory) if record["kind"] == "slots" and kind in record)
