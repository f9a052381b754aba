"""What MLflow has of a run that was resumed: its first params, what changed, and how it ended in the end."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from trainyard.track import Journal, NoTracker, RunInfo, RunShipment
from trainyard.track.shipped import FILE
from trainyard.track.shipper.fleet import ship_now
from trainyard.track.shipper.store import MESSAGE_TAG, Stores

NewRun = Callable[..., Path]
Fill = Callable[..., None]


def ship(work_dir: Path) -> RunShipment:
    return ship_now(work_dir, Stores())


def run_of(shipment: RunShipment) -> Run:
    return MlflowClient(str(shipment.uri)).get_run(str(shipment.run_id))


def test_changes_are_tags(uri: str, new_run: NewRun, fill: Fill) -> None:
    work_dir = new_run(uri, params={"epochs": "1"})
    fill(work_dir)
    assert ship(work_dir).notes == ()
    info = NoTracker().open(work_dir, RunInfo("run", params={"epochs": "2"}), resume=True, step=20)
    fill(work_dir, steps=30)
    shipment = ship(work_dir)
    assert shipment.notes == ()
    assert info.changes == {"epochs@20": "2"}
    assert run_of(shipment).data.params == {"epochs": "1"}
    assert run_of(shipment).data.tags["epochs_20"] == "2"


@pytest.mark.parametrize("known", [True, False])
def test_the_message_is_that_of_the_last_end(uri: str, new_run: NewRun, known: bool) -> None:
    """Also where `shipped.json` is gone, and where all of it is shipped at once."""
    work_dir = new_run(uri)
    with Journal(work_dir) as journal:
        journal.status("KILLED", "interrupted")
    assert run_of(ship(work_dir)).data.tags[MESSAGE_TAG] == "interrupted"
    with Journal(work_dir) as journal:
        journal.status("RUNNING")
        journal.metrics(1, {"loss": 1.0})
        journal.status("FINISHED")
    if not known:
        (work_dir / FILE).unlink()
    run = run_of(ship(work_dir))
    assert run.info.status == "FINISHED"
    assert MESSAGE_TAG not in run.data.tags
    with Journal(work_dir) as journal:
        journal.status("RUNNING")
        journal.status("FAILED", "nan")
    assert run_of(ship(work_dir)).data.tags[MESSAGE_TAG] == "nan"
