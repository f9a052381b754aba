"""Several runs under one shipper, as a sweep has them."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from trainyard.files import DiskFullError
from trainyard.track import Journal, RunInfo
from trainyard.track.shipped import LOG, Shipped, ShipperLock, shipping_process, summary
from trainyard.track.shipper.backoff import PATIENCE, Backoff
from trainyard.track.shipper.fleet import EVERY, POLL, Fleet
from trainyard.track.shipper.run_shipper import RunShipper
from trainyard.track.shipper.store import Stores


def status(uri: str, work_dir: Path) -> str:
    return str(MlflowClient(uri).get_run(str(Shipped.load(work_dir, uri).run_id)).info.status)


def test_jobs_come_and_go(uri: str, new_run: Callable[..., Path], fill: Callable[..., None]) -> None:
    first, second = new_run(uri, "first"), new_run(uri, "second")
    fleet = Fleet()
    for work_dir in (first, second):
        fill(work_dir, status=None)
        fleet.open(work_dir)
    fleet.round()
    assert [status(uri, work_dir) for work_dir in (first, second)] == ["RUNNING", "RUNNING"]
    fleet.close(first)  # its worker was killed
    fleet.round()
    assert [status(uri, work_dir) for work_dir in (first, second)] == ["KILLED", "RUNNING"]
    fill(first, steps=30)  # it is tried again
    fleet.open(first)
    fleet.round()
    assert [status(uri, work_dir) for work_dir in (first, second)] == ["FINISHED", "RUNNING"]
    assert not fleet.finished
    fleet.end()
    fleet.round()
    assert fleet.finished
    assert not fleet.gave_up
    assert status(uri, second) == "KILLED"
    assert all(summary(work_dir).complete for work_dir in (first, second))


def test_a_moment_of_work(
    uri: str, new_run: Callable[..., Path], fill: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that go on have their turn at intervals; one that has ended need not wait for that."""
    first, second = new_run(uri, "first"), new_run(uri, "second")
    begin = now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)  # work takes no time
    fleet = Fleet()
    for work_dir in (first, second):
        fleet.open(work_dir)
        fill(work_dir, status=None)
    for _ in range(2):
        rest = fleet.work()
        assert 0 < rest <= POLL
        now += rest
    assert Shipped.load(first, uri).offset
    assert Shipped.load(second, uri).offset
    before = Shipped.load(first, uri)
    fill(first, steps=30, status=None)
    fill(second, steps=30)
    assert fleet.work() > 0
    assert Shipped.load(first, uri) == before
    fleet.close(second)
    fleet.work()
    assert status(uri, second) == "FINISHED"
    assert Shipped.load(first, uri) == before
    while Shipped.load(first, uri) == before:
        now += fleet.work()
    assert EVERY <= now - begin <= EVERY + 2 * POLL
    fleet.end()
    while not fleet.finished:
        now += fleet.work()
    assert all(summary(work_dir).complete for work_dir in (first, second))


def test_a_run_without_news(uri: str, new_run: Callable[..., Path]) -> None:
    """A look at the journal's size tells that there are no jobs for it."""
    work_dir = new_run(uri)
    run = RunShipper(work_dir, Stores())
    assert not run.idle  # it is not in MLflow yet
    run.step()
    assert run.idle
    with Journal(work_dir) as journal:
        journal.metrics(1, {"loss": 1.0})
        assert not run.idle
        run.step()
        assert run.idle
        journal.artifact("gone.txt")
        journal.model("best.pt", "mine:load")
        run.step()
        assert run.idle  # the model waits for the end
    run.writer_left()
    assert not run.idle
    run.step()
    assert run.done
    run.release()


def test_a_full_disk_does_not_end_the_shipper(
    uri: str, new_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunShipper(new_run(uri), Stores())
    full = DiskFullError("shipped.json", OSError(28, "No space left on device"))

    def save(*_: object) -> None:
        raise full

    run.step()
    monkeypatch.setattr(Shipped, "save", save)
    run.failed(full)
    run.release()


RESUMED = """
import sys
from trainyard.track import Journal
with Journal(sys.argv[1]) as journal:
    journal.status("RUNNING")
    journal.model("best.pt", "mine:load")
    print("resumed", flush=True)
    sys.stdin.readline()
    journal.status("KILLED")
    print("interrupted", flush=True)
    sys.stdin.readline()
"""


def test_the_model_of_a_run_that_was_resumed_at_once(uri: str, new_run: Callable[..., Path]) -> None:
    """The shipper of the trainer that was killed reads the journal of the next one: it waits for that one's model."""
    work_dir = new_run(uri)
    run = RunShipper(work_dir, Stores())
    run.writer_left()
    command = [sys.executable, "-c", RESUMED, str(work_dir)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as trainer:  # type: ignore[call-overload]
        assert trainer.stdout.readline() == "resumed\n"
        run.step()
        assert list(Shipped.load(work_dir, uri).uploads) == ["model"]
        assert not run.done
        trainer.stdin.write("interrupt\n")
        trainer.stdin.flush()
        assert trainer.stdout.readline() == "interrupted\n"
        run.step()  # it has no model, and the trainer waits for its shipper
        assert Shipped.load(work_dir, uri).uploads == {}
        trainer.communicate("end\n")
    run.release()


def test_one_run_does_not_stop_another(
    uri: str, new_run: Callable[..., Path], fill: Callable[..., None], tmp_path: Path
) -> None:
    unreachable = new_run("http://127.0.0.1:9", "unreachable")
    deleted, good = new_run(uri, "deleted"), new_run(uri, "good")
    fleet = Fleet()
    fleet.open(tmp_path / "no run at all")
    for work_dir in (unreachable, deleted, good):
        fill(work_dir, status=None)
        fleet.open(work_dir)
    fleet.round()
    MlflowClient(uri).delete_run(str(Shipped.load(deleted, uri).run_id))
    for work_dir in (deleted, good):
        fill(work_dir, steps=30)
    fleet.end()
    fleet.round()
    assert summary(good).complete
    assert "deleted" in str(summary(deleted).error)
    assert "refused" in str(summary(unreachable).error)
    assert not fleet.finished  # it has patience, for a while
    assert fleet.gave_up
    fleet.leave()


def test_a_shipper_waits_for_another_one(
    uri: str, new_run: Callable[..., Path], fill: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipper of a killed trainer may upload for longer than a shipper retries after failures."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    work_dir = new_run(uri)
    fill(work_dir)
    earlier = ShipperLock(work_dir)
    assert earlier.acquire()
    assert shipping_process(work_dir) == os.getpid()
    fleet = Fleet()
    fleet.open(work_dir)
    fleet.end()
    while now < 1000.0 + 20 * PATIENCE:
        now += fleet.work()
        assert not fleet.finished
    assert "Another shipper is uploading this run." in (work_dir / LOG).read_text()
    earlier.release()
    assert shipping_process(work_dir) is None
    while not fleet.finished:
        now += fleet.work()
    assert not fleet.gave_up
    assert summary(work_dir).complete


def test_what_is_deleted_meanwhile(
    uri: str, new_run: Callable[..., Path], fill: Callable[..., None], tmp_path: Path
) -> None:
    here, there = new_run(uri, "here"), new_run(uri, "there")
    fleet = Fleet()
    for work_dir in (here, there):
        fill(work_dir, status=None)
        fleet.open(work_dir)
    fleet.round()
    shutil.rmtree(here)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"DELETE FROM {table}")
    fill(there, steps=30)
    fleet.round()
    assert summary(there).error is not None
    fleet.end()
    fleet.round()
    assert fleet.finished
    assert not fleet.gave_up
    assert summary(there).complete
    assert len(MlflowClient(uri).search_runs([str(summary(there).experiment_id)])) == 1


def test_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    backoff = Backoff()
    assert backoff.due
    waits: list[Any] = []
    for _ in range(8):
        backoff.failed()
        assert backoff.failing
        assert not backoff.due
        waits.append(0.0)
        while not backoff.due:
            now += 0.25
            waits[-1] += 0.25
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    backoff.failed()
    backoff.hurry()
    assert backoff.due
    assert not backoff.hopeless  # once more
    backoff.failed()
    assert backoff.hopeless
    backoff.succeeded()
    assert backoff.due
    assert not backoff.hopeless
    backoff.failed()
    assert not backoff.hopeless  # a failure of today has nothing to do with yesterday's


def test_a_child_is_made_below_its_parent(uri: str, new_run: Callable[..., Path], fill: Callable[..., None]) -> None:
    """A job of a sweep may end before the sweep's own run had its turn."""
    parent, child = new_run(uri, "sweep"), new_run(uri, "job")
    sweep = RunInfo.read(parent)
    job = RunInfo.read(child)
    job.parent = sweep.id
    job.write(child)
    fill(child)
    fleet = Fleet()
    fleet.open(parent)
    fleet.open(child)
    fleet.close(child)
    fleet.work()
    made = MlflowClient(uri).get_run(str(Shipped.load(child, uri).run_id))
    assert made.data.tags["mlflow.parentRunId"] == Shipped.load(parent, uri).run_id
    fleet.leave()


def test_a_run_without_a_model_is_shipped_without_torch(
    uri: str, tmp_path: Path, new_run: Callable[..., Path], fill: Callable[..., None], environment: dict[str, str]
) -> None:
    """Importing torch takes a shipper a second of processor time and 170 MB."""
    work_dir = new_run(uri, "first")
    fill(work_dir)
    code = (
        "import pathlib, sys; from trainyard.track.shipper.__main__ import main\n"
        "assert main() == 0; pathlib.Path(sys.argv[1]).write_text(str('torch' in sys.modules))"
    )
    orders = f"open {work_dir}\nclose {work_dir}\nend\n"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "found")], input=orders, text=True, env=environment, check=True
    )
    assert status(uri, work_dir) == "FINISHED"
    assert (tmp_path / "found").read_text() == "False"
