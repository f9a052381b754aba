"""A full disk ends a run with the name of the file, and leaves no temporary one."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from waiting import LIMIT

from trainyard.files import DiskFullError, disk_full, next_step
from trainyard.hooks import Checkpoint
from trainyard.runner import Runner, checkpoint
from trainyard.track import Journal
from trainyard.track.run_info import write_json

ROOT = Path(__file__).parents[2]


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let writing beyond a size fail, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _checkpoint(folder: Path) -> Path:
    checkpoint.save(folder / "epoch_0001.pt", {"model": {"weight": torch.zeros(10**4)}})
    return folder / "epoch_0001.pt"


def _record(folder: Path) -> Path:
    checkpoint.write_last(folder, ["epoch_0001.pt"] * 1000)
    return folder / "last.json"


def _json(folder: Path) -> Path:
    write_json(folder / "run.json", ["x"] * 5000)
    return folder / "run.json"


@pytest.mark.parametrize(
    ("write", "name"), [(_checkpoint, "epoch_0001.pt"), (_record, "last.json"), (_json, "run.json")]
)
def test_the_file_is_named_and_no_temporary_one_stays(tmp_path: Path, write: Any, name: str) -> None:
    with no_file_above(5000), pytest.raises(DiskFullError) as error:
        write(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / name} could not be written: ")
    told = "(ulimit -f, or the limit of the file system); then resume=true continues from the last checkpoint."
    assert str(error.value).endswith(f"File too large. Raise the limit for the size of a file {told}")
    with no_file_above(5000), next_step("repeat the command"), pytest.raises(DiskFullError) as error:
        write(tmp_path)
    assert str(error.value).endswith("file system); then repeat the command.")
    assert error.value.status == 1
    assert list(tmp_path.iterdir()) == []
    assert write(tmp_path).exists()


def test_the_journal_keeps_whole_lines(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.metrics(1, {"loss": 1.0})
        before = (tmp_path / "metrics.jsonl").read_bytes()
        with no_file_above(len(before) + 10), pytest.raises(DiskFullError, match=r"File too large\. Raise"):
            journal.metrics(2, {"loss": 1.0})
        assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_it_is_found_before_the_training(parts: Any, tmp_path: Path) -> None:
    runner = Runner(**parts, hooks={"checkpoint": Checkpoint()}, work_dir=tmp_path / "run")
    with no_file_above(2000), pytest.raises(DiskFullError, match="run/checkpoints could not be written"):
        runner.train()
    assert list(tmp_path.iterdir()) == []


def test_where_an_error_comes_from() -> None:
    full = OSError(28, "No space left on device")
    other = RuntimeError("unexpected pos")
    other.__context__ = full
    assert disk_full(other) is full
    assert disk_full(OSError(13, "Permission denied")) is None


def _can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def test_on_a_file_system_of_its_own(tmp_path: Path) -> None:
    if not _can_mount():
        pytest.skip("needs a mount namespace")
    train = (
        f"{sys.executable} {ROOT / 'train.py'} data=rings tracker=none loop.max_epochs=4 hydra.run.dir=run "
        "hook.checkpoint.min_seconds=0; echo status $?; find run -name '.*.*' -type f"
    )
    command = f"mount -t tmpfs -o size=1200k tmpfs {tmp_path} && cd {tmp_path} && {train}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command],
        capture_output=True,
        text=True,
        env=environment,
        timeout=LIMIT,
        check=False,
    )
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "No space left on device" in line]
    assert said.endswith("Free some disk space; then use the same command with hydra.run.dir=run resume=true.")
    assert done.stdout.splitlines()[-1] == "status 1", "and no temporary file after it"
