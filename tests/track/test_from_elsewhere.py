"""Directories from elsewhere: nothing in them is executed and nothing outside them is sent, unless they are trusted."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from trainyard.errors import TrainyardError
from trainyard.track import Journal, MLflowTracker, NoTracker, RunInfo, own
from trainyard.track.shipped import FILE, LOG, Shipped
from trainyard.track.shipper.fleet import Fleet, ship_now
from trainyard.track.shipper.run_shipper import RunShipper
from trainyard.track.shipper.store import Stores

Sync = Callable[..., int]
NewRun = Callable[..., Path]
Fill = Callable[..., None]
CODE = """
import pathlib, torch
pathlib.Path(__file__).with_name("executed").touch()
def load(*_):
    return torch.nn.Linear(2, 1), None
"""


@pytest.fixture
def elsewhere(tmp_path: Path, uri: str, new_run: NewRun, request: pytest.FixtureRequest) -> Path:
    """A run's directory that somebody has packed: with a loader, paths that lead out of it, and links."""
    made = new_run(uri, "theirs", python_path=[str(tmp_path / "code")])
    module = f"theirs_{abs(hash(request.node.name))}"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"{module}.py").write_text(CODE)
    (tmp_path / "secret").write_text("secret")
    for name in ("plain.txt", "checkpoints/best.pt", "folder/inner.txt"):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text("theirs")
    (made / "link.txt").symlink_to(tmp_path / "secret")
    (made / "folder" / "link.txt").symlink_to(tmp_path / "secret")
    (made / "inside.txt").symlink_to(made / "plain.txt")
    with Journal(made) as journal:
        journal.metrics(1, {"loss": 1.0})
        for name in ("plain.txt", "link.txt", "folder", "checkpoints/best.pt"):
            journal.artifact(name)
        journal._add("artifact", path="../../secret", to="up")
        journal._add("artifact", path=str(tmp_path / "secret"), to="absolute")
        journal.model("checkpoints/best.pt", f"{module}:load")
        journal.status("FINISHED")
    packed = tmp_path / "packed" / "run"
    shutil.copytree(made, packed, symlinks=True)
    shutil.rmtree(made)
    return packed


def artifacts(uri: str, work_dir: Path) -> set[str]:
    client, run_id = MlflowClient(uri), str(Shipped.load(work_dir, uri).run_id)
    return {file.path for file in client.list_artifacts(run_id)}


def test_nothing_is_executed_and_nothing_else_is_sent(
    elsewhere: Path, uri: str, sync: Sync, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest is shipped, one message says what is left out, and --trust ships that too."""
    assert sync("packed", "--uri", uri) == 1
    said = capsys.readouterr().out
    assert said.count("is not recognized as your own (it may be a copy or a download)") == 1
    assert "Skipped: artifact absolute/secret, artifact folder, artifact link.txt and 2 more." in said
    assert f"trainyard sync --trust {elsewhere}" in said
    assert "4 records uploaded, 5 not uploaded" in said
    assert artifacts(uri, elsewhere) == {"plain.txt", "best.pt"}
    assert not (tmp_path / "code" / "executed").exists()
    run = MlflowClient(uri).get_run(str(Shipped.load(elsewhere, uri).run_id))
    assert (run.data.metrics, run.info.status) == ({"loss": 1.0}, "FINISHED")

    assert sync("packed", "--trust") == 0
    assert "5 of these records were uploaded by this command" in capsys.readouterr().out
    assert artifacts(uri, elsewhere) >= {"plain.txt", "link.txt", "folder", "up", "absolute"}
    assert (tmp_path / "code" / "executed").exists()
    assert own.is_own_directory(elsewhere)
    assert sync("packed") == 0


def test_a_trainer_that_resumes_there(elsewhere: Path, uri: str, tmp_path: Path) -> None:
    """The directory stays one from elsewhere, the shipper comes to its end, and the run goes to the trainer's store."""
    info = RunInfo.read(elsewhere)
    info.uri = "http://127.0.0.1:9"
    info.write(elsewhere)
    resumed = NoTracker().open(elsewhere, RunInfo("resumed"), resume=True)
    assert (resumed.id, resumed.uri, resumed.mark) == (info.id, None, None)
    tracker = MLflowTracker(uri=uri)
    tracker.leave_shipping()
    assert tracker.open(elsewhere, RunInfo("resumed"), resume=True).uri == uri
    fleet = Fleet()
    fleet.open(elsewhere)
    fleet.end()
    while not fleet.finished:
        fleet.round()
    assert artifacts(uri, elsewhere) == {"plain.txt", "best.pt"}
    assert not (tmp_path / "code" / "executed").exists()
    assert "--trust" in str(Shipped.load(elsewhere, uri).error)


def test_a_store_that_it_names(
    elsewhere: Path, uri: str, sync: Sync, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gets neither the run nor the user's credentials, unless it is the user's own."""
    info = RunInfo.read(elsewhere)
    info.uri = "http://127.0.0.1:9"
    info.write(elsewhere)
    assert sync("packed") == 1
    assert "names a store other than the one of your environment: http://127.0.0.1:9" in capsys.readouterr().out
    assert not (elsewhere / FILE).exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert sync("packed") == 1
    assert "refused" in capsys.readouterr().out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    assert sync("packed") == 1
    assert "MLFLOW_TRACKING_URI: 'mlruns'" in capsys.readouterr().out


def test_the_command_that_trusts_a_directory_uploads_to_the_same_store(
    elsewhere: Path, uri: str, sync: Sync, capsys: pytest.CaptureFixture[str]
) -> None:
    info = RunInfo.read(elsewhere)
    info.uri = "http://127.0.0.1:9"
    info.write(elsewhere)
    assert sync("packed", "--uri", uri) == 1
    command = f"trainyard sync --trust --uri {uri} {elsewhere}"
    assert command in capsys.readouterr().out
    assert sync(*command.split()[2:]) == 0
    assert own.is_own_directory(elsewhere)


def test_a_model_that_is_held_back_is_registered_later(elsewhere: Path, uri: str, sync: Sync) -> None:
    with Journal(elsewhere) as journal:
        journal.register("theirs", "best")
        journal.status("FINISHED")
    assert sync("packed") == 1
    assert {"model", "register"} <= Shipped.load(elsewhere, uri).uploads.keys()
    assert sync("packed", "--trust") == 0
    version = MlflowClient(uri).get_model_version_by_alias("theirs", "best")
    assert version.run_id == Shipped.load(elsewhere, uri).run_id


@pytest.mark.parametrize("name", ["metrics.jsonl", LOG, ".shipper.lock"])
def test_files_that_are_links(elsewhere: Path, uri: str, tmp_path: Path, name: str) -> None:
    (elsewhere / name).unlink(missing_ok=True)
    (elsewhere / name).symlink_to(tmp_path / "secret")
    with pytest.raises(TrainyardError, match=rf"and {name} in this directory is a link\. .*--trust"):
        ship_now(elsewhere, Stores(), uri)
    assert (tmp_path / "secret").read_text() == "secret"


def test_a_name_that_leads_out_of_the_folder_of_arrays(uri: str, new_run: NewRun) -> None:
    work_dir = new_run(uri)
    with Journal(work_dir) as journal:
        journal.array("a", 1, [1])
        journal.status("FINISHED")
    Shipped(names={"array": {"a": "../../../../escaped"}}).save(work_dir, uri)
    assert "array a" in str(ship_now(work_dir, Stores()).notes)
    assert not list(Path.cwd().rglob("escaped*"))


def test_whose_a_directory_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    made.mkdir()
    info = NoTracker().open(made, RunInfo("run"))
    assert own.is_own(info, made)
    assert own.is_own_directory(made.rename(tmp_path / "moved"))
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    assert not own.is_own_directory(tmp_path / "copy")
    assert not own.is_own_directory(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    assert not own.can_be_told()
    assert not own.is_own_directory(tmp_path / "moved")
    made.mkdir()
    assert own.is_own(NoTracker().open(made, RunInfo("run")), made)
    assert (tmp_path / "another user/trainyard/key").stat().st_mode & 0o777 == 0o600


def test_without_a_place_for_a_key_what_is_trained_is_shipped(
    uri: str, tmp_path: Path, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    made = tmp_path / "made"
    made.mkdir()
    tracker = MLflowTracker(uri=uri)
    tracker.leave_shipping()
    assert tracker.open(made, RunInfo("run")).mark is None
    assert tracker.open(made, RunInfo("run"), resume=True).uri == uri
    monkeypatch.setattr(RunShipper, "_upload_one", lambda *_: None)
    with Journal(made) as journal:
        journal.model("a.pt", "a:b")
        journal.status("FINISHED")
    fleet = Fleet()
    fleet.open(made)
    fleet.end()
    fleet.round()
    assert fleet.finished
    assert not fleet.gave_up
