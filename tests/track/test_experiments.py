"""Where a run goes: the experiment that config and environment choose, one that is deleted, and a later choice."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from trainyard.errors import ConfigError
from trainyard.track import Journal, MLflowTracker, NoTracker, RunInfo
from trainyard.track.shipped import summary
from trainyard.track.shipper.fleet import ship_now
from trainyard.track.shipper.store import Stores

NewRun = Callable[..., Path]
Fill = Callable[..., None]


def chosen(**settings: object) -> tuple[str | None, str | None]:
    tracker = MLflowTracker(**settings)
    return tracker.experiment, tracker.experiment_id


def test_the_config_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert chosen() == ("trainyard", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    assert chosen() == (None, "7")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "by name")
    assert chosen() == ("by name", None)
    assert chosen(experiment="given") == ("given", None)
    assert chosen(experiment=2026) == ("2026", None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experiment": "x" * 501}, r"^experiment: 'x{40}… \(501 characters\)' is invalid"),
        ({"experiment": ["a"]}, r"^experiment: "),
        ({"experiment": ""}, r"^experiment: "),
        ({"run_name": [1]}, r"^run_name: "),
        ({"run_name": "a\nb"}, r"^run_name: "),
    ],
)
def test_names_that_mlflow_does_not_take(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MLflowTracker(**settings)


def test_variables_that_mlflow_does_not_take(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in ("no id", "77"):  # that one is not in the database
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
        with pytest.raises(ConfigError, match=rf"^MLFLOW_EXPERIMENT_ID: '{number}' is invalid.*mlflow\.db"):
            MLflowTracker(uri=uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "x" * 501)
    with pytest.raises(ConfigError, match=r"^MLFLOW_EXPERIMENT_NAME: "):
        MLflowTracker(uri=uri)


def test_a_deleted_experiment_is_found_at_the_start(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(uri)
    number = client.create_experiment("it's old")
    assert chosen(uri=uri, experiment="it's old") == ("it's old", None)
    client.delete_experiment(number)
    with pytest.raises(ConfigError, match=r"^experiment: \"it's old\" is invalid.*restore it"):
        MLflowTracker(uri=uri, experiment="it's old")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
    with pytest.raises(ConfigError, match=r"^MLFLOW_EXPERIMENT_ID: .*restore it"):
        MLflowTracker(uri=uri)
    assert chosen(uri=uri, experiment="other") == ("other", None)
    (Path("none of mlflow.db")).write_text("text")
    assert chosen(uri="sqlite:///none of mlflow.db", experiment="other") == ("other", None)


def test_what_becomes_of_a_deleted_experiment(uri: str, new_run: NewRun, fill: Fill) -> None:
    """Deleted while the run goes on: all of the journal goes to where it is restored, or to another one."""
    work_dir = new_run(uri)
    fill(work_dir)
    client = MlflowClient(uri)
    number = client.create_experiment("trainyard")
    client.delete_experiment(number)
    left = ship_now(work_dir, Stores())
    assert (left.shipped, left.unshipped) == (0, 22)
    assert str(left.error).startswith("The experiment trainyard was deleted in MLflow")
    assert ship_now(work_dir, Stores(), experiment="another").complete
    run = client.get_run(str(summary(work_dir).run_id))
    assert client.get_experiment(run.info.experiment_id).name == "another"
    assert len(client.get_metric_history(run.info.run_id, "lr")) == 20
    client.restore_experiment(number)
    restored = new_run(uri, "restored")
    fill(restored)
    assert ship_now(restored, Stores()).experiment_id == number


def test_an_experiment_by_its_id(uri: str, new_run: NewRun, fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    number = MlflowClient(uri).create_experiment("by id")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
    tracker = MLflowTracker(uri=uri)
    monkeypatch.setattr(tracker, "_track", lambda work_dir: None)
    work_dir = Path("run")
    work_dir.mkdir()
    tracker.open(work_dir, RunInfo("run"))
    fill(work_dir)
    assert ship_now(work_dir, Stores()).experiment_id == number


def test_a_run_that_was_not_tracked_at_first(uri: str, fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its journal goes to the store that it is resumed with, and stays there."""
    work_dir = Path("run")
    work_dir.mkdir()
    first = NoTracker().open(work_dir, RunInfo("run", params={"lr": "0.1"}))
    fill(work_dir, steps=3, status="KILLED")
    tracker = MLflowTracker(uri=uri, experiment="later")
    monkeypatch.setattr(tracker, "_track", lambda work_dir: None)
    resumed = tracker.open(work_dir, RunInfo("run", params={"lr": "0.1"}), resume=True)
    assert (resumed.id, resumed.uri, resumed.experiment) == (first.id, uri, "later")
    with Journal(work_dir) as journal:
        journal.metrics(4, {"lr": 0.1})
        journal.status("FINISHED")
    shipment = ship_now(work_dir, Stores())
    assert shipment.complete
    client = MlflowClient(uri)
    assert client.get_experiment_by_name("later").experiment_id == shipment.experiment_id
    history = client.get_metric_history(str(shipment.run_id), "lr")
    assert [point.step for point in history] == [1, 2, 3, 4]
    assert NoTracker().open(work_dir, RunInfo("run"), resume=True).uri == uri
