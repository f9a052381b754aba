"""Files that a run can do without."""

import os
from pathlib import Path
from typing import Any

import pytest

from trainyard.catalog import StoredRun
from trainyard.catalog.garbage import freed, garbage

NAMES = ("epoch_0001.pt", "epoch_0002.pt", "epoch_0003.pt")


def names(run: StoredRun) -> list[str]:
    return [path.name for path in garbage(run)]


def age(run: StoredRun) -> None:
    """Give the checkpoints the times in which they would be written."""
    for seconds, path in enumerate(sorted(run.checkpoints, key=lambda path: path.name)):
        os.utime(path, (seconds, seconds))


def test_a_finished_run_keeps_the_best(make_run: Any) -> None:
    run = make_run(checkpoints=[*NAMES, "best.pt"])
    age(run)
    assert names(run) == [*NAMES]


@pytest.mark.parametrize("status", ["FINISHED", "KILLED", "FAILED", "RUNNING"])
def test_without_a_best_one_the_newest_stays(make_run: Any, status: str) -> None:
    run = make_run(checkpoints=NAMES, status=status)
    age(run)
    assert names(run) == [*NAMES[:-1]]


@pytest.mark.parametrize("status", ["KILLED", "FAILED", "RUNNING"])
def test_a_run_that_can_be_resumed_keeps_the_newest_as_well(make_run: Any, status: str) -> None:
    run = make_run(checkpoints=[*NAMES, "best.pt"], status=status)
    age(run)
    assert names(run) == [*NAMES[:-1]]


@pytest.mark.parametrize("status", ["FINISHED", "KILLED"])
def test_the_best_by_other_metrics_stay_and_do_not_stand_for_the_newest(make_run: Any, status: str) -> None:
    run = make_run(checkpoints=[*NAMES, "best_accuracy.pt"], status=status)
    age(run)
    os.utime(run.directory / "checkpoints" / "best_accuracy.pt", (99, 99))
    assert names(run) == [*NAMES[:-1]]


def test_what_a_killed_process_left_is_garbage_and_the_list_of_checkpoints_is_not(make_run: Any) -> None:
    run = make_run(checkpoints=["best.pt", "last.json", ".epoch_0004.pt.tmp", ".best.pt.link"])
    assert names(run) == [".best.pt.link", ".epoch_0004.pt.tmp"]


def test_a_second_name_of_a_kept_file_frees_nothing(tmp_path: Path) -> None:
    best, same, other, folder = (tmp_path / name for name in ("best.pt", "same.pt", "other.pt", "sharded"))
    best.write_bytes(b"x" * 1000)
    os.link(best, same)
    other.write_bytes(b"x" * 10)
    folder.mkdir()
    (folder / "shard").write_bytes(b"x" * 5)
    assert freed([same, other, folder]) == 15
    assert freed([best, same]) == 1000
