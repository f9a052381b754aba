"""`trainyard sync`, run in this process where a test does not need it to be one of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from trainyard.track import Journal, RunInfo
from trainyard.track.shipped import Shipped, ShipperLock

Sync = Callable[..., int]


def test_all_runs_below(
    uri: str, sync: Sync, new_run: Callable[..., Path], fill: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    children = [new_run(uri, f"{number}/job") for number in range(2)]
    parent = new_run(uri, "z")
    for work_dir in children:
        RunInfo("job", uri=uri, experiment="trainyard", parent=RunInfo.read(parent).id).write(work_dir)
    for work_dir in (*children, parent):
        fill(work_dir, steps=3)
    assert sync("outputs") == 0
    assert capsys.readouterr().out.count("5 of these records were uploaded by this command") == 3
    client = MlflowClient(uri)
    ids = [Shipped.load(work_dir, uri).run_id for work_dir in (*children, parent)]
    runs = [client.get_run(str(run_id)) for run_id in ids]
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert [run.data.tags.get("mlflow.parentRunId") for run in runs] == [ids[2], ids[2], None]
    assert sync("outputs") == 0
    assert capsys.readouterr().out.count("no new records") == 3


def test_a_run_that_refers_to_a_run_below_it(
    uri: str, sync: Sync, new_run: Callable[..., Path], fill: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """As a sweep refers to its best job: the first command uploads all records."""
    parent, child = new_run(uri, "sweep"), new_run(uri, "sweep/0")
    RunInfo("job", uri=uri, experiment="trainyard", parent=RunInfo.read(parent).id).write(child)
    with Journal(parent) as journal:
        journal.linked_tags({"winner.run": f"run:{RunInfo.read(child).id}"})
        journal.status("FINISHED")
    fill(child, steps=3)
    assert sync("outputs") == 0
    said = capsys.readouterr().out
    assert "not uploaded" not in said
    assert said.count("2 of these records were uploaded by this command") == 1
    of_parent, of_child = (Shipped.load(work_dir, uri).run_id for work_dir in (parent, child))
    assert MlflowClient(uri).get_run(str(of_parent)).data.tags["winner.run"] == of_child


def test_what_another_ships_is_left_alone(
    uri: str, sync: Sync, new_run: Callable[..., Path], fill: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    work_dir = new_run(uri)
    fill(work_dir)
    lock = ShipperLock(work_dir)
    assert lock.acquire()
    assert sync("outputs") == 1, "its records are still missing"
    assert "skipped" in capsys.readouterr().out
    assert Shipped.load(work_dir, uri) == Shipped()
    lock.release()
    assert sync("outputs") == 0
    assert lock.acquire()
    assert sync("outputs") == 0
    lock.release()


def test_what_stays_unshipped_is_a_failure(
    uri: str, sync: Sync, new_run: Callable[..., Path], fill: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, place in (("0", "http://127.0.0.1:9"), ("1", None), ("2", uri)):
        fill(new_run(place, name))
    broken = new_run(uri, "3")
    (broken / "run.json").write_text("{")
    assert sync("outputs") == 1
    out = capsys.readouterr().out
    assert "refused" in out
    assert "To upload the run, pass an MLflow URI with --uri" in out
    assert "run.json cannot be read" in out
    assert "22 of these records were uploaded by this command" in out
    (broken / "run.json").unlink()
    assert sync("outputs", "--uri", "sqlite:///elsewhere.db") == 0
    assert len(MlflowClient("sqlite:///elsewhere.db").search_runs(["1"])) == 3


def test_wrong_arguments(sync: Sync, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["no"], "FOLDER: 'no' is invalid"),
        ([str(tmp_path), "--uri", "mlruns"], "--uri: 'mlruns'"),
    ):
        assert sync(*arguments) == 2
        assert message in capsys.readouterr().err
    assert sync(str(tmp_path)) == 0
    assert capsys.readouterr().out == f"No runs found in {tmp_path}.\n"
