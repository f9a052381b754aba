"""What a journal lacks is told when a run is resumed, and when it ends."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainyard.files import DirectoryGoneError
from trainyard.hooks import Checkpoint, Hook, Logger
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.track import Journal, read


@pytest.fixture
def trained(parts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """Train into `run`, and return the warnings."""

    def run(epochs: int, **more: Any) -> list[str]:
        hooks = {"checkpoint": Checkpoint(), "logger": Logger(interval=2)} | more.pop("hooks", {})
        loop = EpochBasedTrainLoop(epochs)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            Runner(**(parts | {"hooks": hooks, "loop": loop, "work_dir": tmp_path / "run"} | more)).train()
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    return run


def _cut(file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if b'"val/' in line)
    file.write_bytes(b"".join(lines[:last]))


@pytest.mark.parametrize("damage", [_cut, lambda file: file.write_bytes(b""), Path.unlink])
def test_a_journal_that_is_shorter_than_the_checkpoint(
    trained: Any, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    assert trained(1) == []
    damage(tmp_path / "run/metrics.jsonl")
    (said,) = trained(2, resume=True)
    assert said.startswith(f"{tmp_path / 'run/metrics.jsonl'} ends before the checkpoint of iteration ")
    assert "val/accuracy" in said
    assert said.endswith("missing in this file, and in MLflow if they were not uploaded before.")
    assert trained(3, resume=True, work_dir=tmp_path / "other") == []


def test_a_whole_journal_is_no_gap(trained: Any, tmp_path: Path) -> None:
    assert trained(1) == []
    assert trained(2, resume=True) == []
    start = tmp_path / "run/checkpoints/epoch_0001.pt"
    assert trained(2, resume=start, work_dir=tmp_path / "another") == []


class Moves(Hook):
    """Does something to the run's directory in its second epoch."""

    def __init__(self, change: Callable[[Path], Any]) -> None:
        self.change = change

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.epoch == 1 and runner.work_dir is not None:
            self.change(runner.work_dir)


def test_a_journal_that_is_removed_while_the_run_is_under_way(trained: Any) -> None:
    said = trained(2, hooks={"change": Moves(lambda folder: (folder / "metrics.jsonl").unlink())})
    assert [line for line in said if "metrics.jsonl was removed during the run" in line]


def test_a_run_that_is_moved_while_it_is_under_way(
    trained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = r"run was moved or removed during the run, so .* If it was moved, move it back; then resume=true continues"
    with pytest.raises(DirectoryGoneError, match=told) as error:
        trained(4, hooks={"change": Moves(lambda folder: folder.rename(folder.with_name("elsewhere")))})
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # as it comes from another process
    assert "metrics.jsonl was moved during the run" in caplog.text
    assert not (tmp_path / "run").exists(), "nothing is begun anew in the old place"
    (tmp_path / "elsewhere").rename(tmp_path / "run")
    trained(4, resume=True)


STRANGE = (
    *('{"kind":"metrics","time":1,"step":1e400,"values":{"loss":1}}', '{"kind":"metrics","time":1,"step":NaN}'),
    *('{"kind":"metrics","time":1,"step":99999999999999999999,"values":{"loss":1}}', "[" * 10**5, "null", "\x00"),
)


@pytest.mark.parametrize("line", STRANGE)
def test_a_strange_line_hides_no_point_after_it(tmp_path: Path, line: str) -> None:
    with Journal(tmp_path) as journal:
        journal.metrics(1, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with Journal(tmp_path) as journal:
        journal.metrics(2, {"loss": 2.0})
    points = [(record["step"], record["values"]) for record, _ in read(tmp_path / "metrics.jsonl")]
    assert points == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]
    assert json.loads((tmp_path / "metrics.jsonl").read_bytes().splitlines()[-1])["step"] == 2
