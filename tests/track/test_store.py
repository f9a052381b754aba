"""What the SQLite store holds after shipping; in this process, through the functions that the shipper runs."""

import json
import math
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.utils.validation import _validate_metric_name, _validate_param, _validate_tag

from trainyard.errors import TrainyardError
from trainyard.track import Journal, RunInfo, RunShipment, read
from trainyard.track.shipped import LOG, Shipped, ShipperLock, summary
from trainyard.track.shipper.fleet import Fleet, ship_now
from trainyard.track.shipper.run_shipper import InUseError
from trainyard.track.shipper.sanitize import MAX_PARAM, MAX_TAG, clean_name, clean_text
from trainyard.track.shipper.store import Stores

NewRun = Callable[..., Path]
Fill = Callable[..., None]
Journaled = Callable[[Path], dict[tuple[str, int], list[str]]]
Stored = Callable[[str, str], dict[tuple[str, int], list[str]]]


def ship(work_dir: Path, uri: str | None = None) -> RunShipment:
    return ship_now(work_dir, Stores(), uri)


def run_of(shipment: RunShipment) -> Run:
    assert shipment.uri is not None
    assert shipment.run_id is not None
    return MlflowClient(shipment.uri).get_run(shipment.run_id)


def artifact(run: Run, path: str) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"), path)


def test_everything_arrives(uri: str, new_run: NewRun, tmp_path: Path) -> None:
    facts = {"git.commit": "c0ffee", "git.branch": "trunk", "version.torch": "2.13.0"}
    more = {"tags": {"team": "a"}, "facts": facts, "user": "ann", "source": "train.py", "start_time": 1e9}
    work_dir = new_run(uri, "mlp", params={"optim.lr": "0.1", "model": "mlp"}, **more)
    (work_dir / "checkpoints").mkdir()
    (work_dir / "checkpoints" / "best.pt").write_bytes(b"weights")
    (work_dir / ".hydra").mkdir()
    (work_dir / ".hydra" / "config.yaml").write_text("model: mlp\n")
    values = {"train/loss": 0.25, "nan": math.nan, "inf": math.inf, "minus": -math.inf}
    with Journal(work_dir) as journal:
        journal.status("RUNNING")
        journal.metrics(7, values)
        journal.array("val/confusion", 7, [[1, 0], [0, 1]])
        journal.array("val/confusion", 8, [[1.0, math.nan], [0.0, 2.0]])
        journal.params({"data.num_classes": 10})
        journal.tags({"device": "cpu"})
        journal.artifact("checkpoints/best.pt", to="checkpoints")
        journal.artifact(".hydra")
        journal.status("FINISHED")
    shipment = ship(work_dir)
    assert shipment.complete
    assert (shipment.shipped, shipment.unshipped, shipment.notes) == (9, 0, ())
    run = run_of(shipment)
    assert run.info.status == "FINISHED"
    assert (run.info.run_name, run.info.start_time) == ("mlp", 10**12)
    assert run.data.params == {"optim.lr": "0.1", "model": "mlp", "data.num_classes": "10"}
    expected = {
        "team": "a",
        "device": "cpu",
        "version.torch": "2.13.0",
        "trainyard.run_id": RunInfo.read(work_dir).id,
        "mlflow.runName": "mlp",
        "mlflow.user": "ann",
        "mlflow.source.name": "train.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "c0ffee",
        "mlflow.source.git.branch": "trunk",
    }
    assert run.data.tags == expected
    client = MlflowClient(uri)
    history = {name: client.get_metric_history(run.info.run_id, name) for name in values}
    assert {len(points) for points in history.values()} == {1}
    assert {points[0].step for points in history.values()} == {7}
    assert history["train/loss"][0].value == 0.25
    assert math.isnan(history["nan"][0].value)
    # SQL has no infinity: MLflow itself turns it into the largest number there is.
    assert history["inf"][0].value > 1e308
    assert history["minus"][0].value < -1e308
    assert artifact(run, "checkpoints/best.pt").read_bytes() == b"weights"
    assert artifact(run, ".hydra/config.yaml").read_text() == "model: mlp\n"
    confusion = json.loads(artifact(run, "arrays/val/confusion.json").read_text())
    assert confusion == {"name": "val/confusion", "step": 8, "value": [[1.0, "NaN"], [0.0, 2.0]]}
    assert artifact(run, "").is_relative_to(tmp_path / "mlruns")  # beside the database
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not (work_dir / LOG).exists()


def test_a_replay_changes_nothing(uri: str, new_run: NewRun, fill: Fill, journaled: Journaled, stored: Stored) -> None:
    work_dir = new_run(uri, params={"lr": "0.1"})
    fill(work_dir, steps=700)  # more points than one batch takes
    first = ship(work_dir)
    assert first.run_id is not None
    points = stored(uri, first.run_id)
    assert points == journaled(work_dir)
    assert all(len(values) == 1 for values in points.values())
    before = run_of(first)
    state = Shipped.load(work_dir, uri)
    state.offset = 0
    state.save(work_dir, uri)
    assert ship(work_dir) == first
    (work_dir / "shipped.json").unlink()  # as after a crash before it was first written: the run is found by its tag
    assert ship(work_dir) == first
    assert stored(uri, first.run_id) == points
    after = run_of(first)
    assert after.data.to_dictionary() == before.data.to_dictionary()
    assert after.info.end_time == before.info.end_time
    client = MlflowClient(uri)
    assert len(client.search_runs([before.info.experiment_id], run_view_type=ViewType.ALL)) == 1


TRAINER = """
import sys
from trainyard.track import Journal
with Journal(sys.argv[1]) as journal:
    for line in sys.stdin:  # the steps to train
        journal.status("RUNNING")
        for step in range(*map(int, line.split())):
            journal.metrics(step, {"loss": 1.0})
        print(flush=True)
    sys.stdin.close()
"""


class Trainer:
    """Another process that trains, and stays until it is killed."""

    def __init__(self, work_dir: Path, environment: dict[str, str]) -> None:
        command = [sys.executable, "-c", TRAINER, str(work_dir)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def train(self, first: int, last: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{first} {last}\n")
        self._process.stdout.readline()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def test_a_resumed_run_goes_on(
    uri: str, new_run: NewRun, environment: dict[str, str], journaled: Journaled, stored: Stored
) -> None:
    work_dir = new_run(uri)
    trainer = Trainer(work_dir, environment)
    trainer.train(0, 10)
    running = ship(work_dir)
    assert running.complete
    assert run_of(running).info.status == "RUNNING"
    trainer.kill()
    killed = run_of(ship(work_dir))
    assert killed.info.status == "KILLED"
    assert killed.info.end_time == int([record["time"] for record, _ in read(work_dir / "metrics.jsonl")][-1] * 1000)

    trainer = Trainer(work_dir, environment)
    trainer.train(5, 15)  # from a checkpoint
    assert run_of(ship(work_dir)).info.status == "RUNNING"
    trainer.kill()
    with Journal(work_dir) as journal:
        journal.status("FAILED", "the disk is full")
    shipment = ship(work_dir)
    failed = run_of(shipment)
    assert failed.info.run_id == killed.info.run_id
    assert failed.info.status == "FAILED"
    assert failed.data.tags["trainyard.message"] == "the disk is full"
    points = stored(uri, failed.info.run_id)
    assert points == journaled(work_dir)
    assert points.keys() == {("loss", step) for step in range(15)}
    assert all(len(values) == 1 for values in points.values())


def test_what_mlflow_would_refuse(uri: str, new_run: NewRun) -> None:
    odd = {"acc@5": 0.5, "a//b/../c": 1.0, "/root": 2.0, "x" * 300: 3.0, "": 4.0, "Ünïcode [%]": 5.0, "..": 6.0}
    params = {f"p{index}": str(index) for index in range(250)} | {"long": "é" * 7000, "nul\0": "a\0b\ud800", "a?b": ""}
    work_dir = new_run(uri, params=params, tags={"long": "x" * 9000, "a(b)": "c"})
    with Journal(work_dir) as journal:
        journal.metrics(1, odd)
        journal.metrics(2, {"after": 1.0})
        journal.status("FINISHED")
    shipment = ship(work_dir)
    run = run_of(shipment)
    names = {"acc_5", "a/c", "root", "x" * 250, "_", "Ünïcode ___", "after"}
    assert names <= run.data.metrics.keys()
    assert len(run.data.params) == 253
    assert run.data.params["long"] == "é" * (MAX_PARAM - 1) + "…"
    assert run.data.params["nul_"] == "ab?"
    assert len(run.data.tags["long"]) == MAX_TAG
    assert run.data.tags["a_b_"] == "c"
    assert run.info.status == "FINISHED"


@settings(max_examples=50)
@given(st.text(max_size=300))
def test_mlflow_takes_a_clean_name(name: str) -> None:
    clean = clean_name(name)
    _validate_metric_name(clean)
    _validate_param(clean, clean_text(name, MAX_PARAM))
    _validate_tag(clean, clean_text(name, MAX_TAG))
    assert clean_name(clean) == clean


def test_a_changed_param_is_left_out(uri: str, new_run: NewRun) -> None:
    work_dir = new_run(uri, params={"epochs": "1", "lr": "0.1"})
    with Journal(work_dir) as journal:
        journal.params({"epochs": "2", "device": "cpu"})
        journal.metrics(1, {"loss": 1.0})
        journal.status("FINISHED")
    shipment = ship(work_dir)
    assert shipment.complete
    assert run_of(shipment).data.params == {"epochs": "1", "lr": "0.1", "device": "cpu"}
    (note,) = shipment.notes
    assert "epochs" in note
    assert note in (work_dir / LOG).read_text()


def test_a_deleted_run_is_not_written_to(uri: str, new_run: NewRun, fill: Fill) -> None:
    work_dir = new_run(uri)
    fill(work_dir, status=None)
    first = ship(work_dir)
    client = MlflowClient(uri)
    client.delete_run(first.run_id)
    fill(work_dir, steps=25)
    deleted = ship(work_dir)
    assert not deleted.complete
    assert "deleted" in str(deleted.error)
    assert deleted.unshipped == 7  # two states and five steps
    client.restore_run(first.run_id)
    restored = ship(work_dir)
    assert restored.complete
    assert restored.run_id == first.run_id


def test_a_run_that_is_gone_is_made_anew(
    uri: str, new_run: NewRun, fill: Fill, journaled: Journaled, stored: Stored, tmp_path: Path
) -> None:
    work_dir = new_run(uri)
    fill(work_dir)
    first = ship(work_dir)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"DELETE FROM {table}")
    fill(work_dir, steps=25)
    again = ship(work_dir)
    assert again.complete
    assert again.run_id not in (None, first.run_id)
    assert stored(uri, str(again.run_id)) == journaled(work_dir)


def test_a_deleted_experiment_is_named(uri: str, new_run: NewRun, fill: Fill) -> None:
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("trainyard"))
    work_dir = new_run(uri)
    fill(work_dir)
    shipment = ship(work_dir)
    assert not shipment.complete
    assert "experiment trainyard was deleted" in str(shipment.error)


def test_uploads_that_fail_hold_nothing_up(
    uri: str, new_run: NewRun, fill: Fill, journaled: Journaled, stored: Stored, tmp_path: Path
) -> None:
    (tmp_path / "mlruns").write_text("in the way")
    work_dir = new_run(uri)
    (work_dir / "a.txt").write_text("a")
    with Journal(work_dir) as journal:
        journal.artifact("a.txt")
        journal.artifact("gone.txt")
    fill(work_dir)
    shipment = ship(work_dir)
    assert not shipment.complete
    assert shipment.unshipped == 2
    assert stored(uri, str(shipment.run_id)) == journaled(work_dir)
    assert run_of(shipment).info.status == "FINISHED"
    (tmp_path / "mlruns").unlink()
    later = ship(work_dir)
    assert later.complete
    assert later.error is None
    assert later.notes == ("artifact gone.txt: the file no longer exists",)
    assert artifact(run_of(later), "a.txt").read_text() == "a"


def test_a_checkpoint_that_a_resumed_run_has_removed_is_no_loss(uri: str, new_run: NewRun) -> None:
    """It was recorded at the end of the first part, and the run keeps newer ones by now. Other files are missing."""
    work_dir = new_run(uri)
    (work_dir / "checkpoints").mkdir()
    (work_dir / "checkpoints" / "epoch_0002.pt").touch()
    with Journal(work_dir) as journal:
        journal.status("RUNNING")
        journal.artifact("checkpoints/epoch_0001.pt", to="checkpoints")
        journal.artifact("notes.txt")
        journal.status("KILLED")
        journal.status("RUNNING")
        for epoch in (2, 3):
            journal.artifact(f"checkpoints/epoch_000{epoch}.pt", to="checkpoints")
        journal.status("FINISHED")
    shipment = ship(work_dir)
    assert shipment.complete
    gone = "the file no longer exists"
    assert shipment.notes == (f"artifact notes.txt: {gone}", f"artifact checkpoints/epoch_0003.pt: {gone}")
    assert f"epoch_0001.pt: {gone}, because the run was resumed" in (work_dir / LOG).read_text()
    assert artifact(run_of(shipment), "checkpoints/epoch_0002.pt").exists()


def test_artifacts_are_theirs(uri: str, new_run: NewRun, tmp_path: Path) -> None:
    """What happens to a file of the run later does not change what was uploaded, until it is uploaded again."""
    work_dir = new_run(uri)
    for name in ("best.pt", "notes.txt"):
        (work_dir / name).write_text("one")

    def upload() -> Run:
        with Journal(work_dir) as journal:
            for name in ("best.pt", "notes.txt"):
                journal.artifact(name, to="files")
        return run_of(ship(work_dir))

    run = upload()
    root = artifact(run, "files")
    assert (root / "best.pt").samefile(work_dir / "best.pt")  # a checkpoint takes no more room
    assert not (root / "notes.txt").samefile(work_dir / "notes.txt")
    (work_dir / "new.pt").write_text("two")
    (work_dir / "new.pt").replace(work_dir / "best.pt")  # as checkpoints are written
    (work_dir / "notes.txt").write_text("two")
    assert {file.name: file.read_text() for file in root.iterdir()} == {"best.pt": "one", "notes.txt": "one"}
    (root / ".best.pt.part").hardlink_to(root / "best.pt")  # left by a shipper that was killed
    for _ in range(2):  # once more, which finds the same link there
        upload()
        assert {file.name: file.read_text() for file in root.iterdir()} == {"best.pt": "two", "notes.txt": "two"}
    with Journal(work_dir) as journal:
        journal.artifact("notes.txt", to="../elsewhere")
    refused = ship(work_dir)
    assert refused.complete
    assert "artifact ../elsewhere/notes.txt" in refused.notes[0]
    assert not (root.parents[1] / "elsewhere").exists()


def test_a_run_that_nobody_has_shipped_is_not_searched_for(uri: str, new_run: NewRun, fill: Fill) -> None:
    """But one is whose directory is a copy, or whose shipper was killed before it had noted down what it made."""
    work_dir = new_run(uri)
    fill(work_dir)
    fleet = Fleet()
    fleet.open(work_dir)
    fleet.round()
    fleet.leave()
    first = summary(work_dir)
    assert first.run_id is not None
    (work_dir / "shipped.json").unlink()
    fleet.open(work_dir)
    fleet.round()
    fleet.leave()
    assert summary(work_dir).run_id == first.run_id
    for name in ("shipped.json", ".shipper.lock"):
        (work_dir / name).unlink()
    assert ship(work_dir).run_id == first.run_id


def test_a_child_knows_its_parent(uri: str, new_run: NewRun, fill: Fill) -> None:
    parent, child, orphan = new_run(uri, "sweep"), new_run(uri, "0"), new_run(uri, "1")
    for work_dir, parent_id in ((child, RunInfo.read(parent).id), (orphan, "f" * 32)):
        RunInfo("job", uri=uri, experiment="trainyard", parent=parent_id).write(work_dir)
    for work_dir in (parent, child, orphan):
        fill(work_dir)
    shipments = [ship(work_dir) for work_dir in (parent, child, orphan)]
    assert all(shipment.complete for shipment in shipments)
    assert run_of(shipments[1]).data.tags["mlflow.parentRunId"] == shipments[0].run_id
    assert "mlflow.parentRunId" not in run_of(shipments[2]).data.tags


def test_one_shipper_a_run(uri: str, new_run: NewRun, fill: Fill) -> None:
    work_dir = new_run(uri)
    fill(work_dir)
    lock = ShipperLock(work_dir)
    assert lock.acquire()
    with pytest.raises(InUseError):
        ship(work_dir)
    lock.release()
    assert ship(work_dir).complete


def test_another_store_is_shipped_to_by_itself(uri: str, new_run: NewRun, fill: Fill, tmp_path: Path) -> None:
    work_dir = new_run(None)
    fill(work_dir)
    with pytest.raises(TrainyardError, match="--uri"):
        ship(work_dir)
    here = ship(work_dir, uri)
    assert here.complete
    other = tmp_path / "other" / "mlflow.db"
    there = ship(work_dir, f"sqlite:///{other}")
    assert there.complete
    assert other.exists()
    assert there.run_id != here.run_id
    assert ship(work_dir, uri) == here
