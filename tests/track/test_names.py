"""Names that MLflow's rules make equal stay different in MLflow; in this process, through the shipper's functions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.utils.validation import _validate_metric_name

from trainyard.track import Journal, RunShipment
from trainyard.track.shipped import FILE, LOG, Shipment
from trainyard.track.shipper.fleet import ship_now
from trainyard.track.shipper.names import KnownNames, Names, renamed
from trainyard.track.shipper.sanitize import clean_name
from trainyard.track.shipper.store import Stores

NewRun = Callable[..., Path]


def ship(work_dir: Path) -> RunShipment:
    return ship_now(work_dir, Stores())


def values(client: MlflowClient, run_id: str) -> dict[str, list[float]]:
    names = client.get_run(run_id).data.metrics
    return {name: [point.value for point in client.get_metric_history(run_id, name)] for name in names}


def test_equal_names_are_series_of_their_own(uri: str, new_run: NewRun, tmp_path: Path) -> None:
    long = "x" * 300
    work_dir = new_run(uri, params={"model.a+b": "1", "model.a_b": "2"}, tags={"team#": "a", "team_": "b"})
    client = MlflowClient(uri)
    with Journal(work_dir) as journal:
        journal.metrics(1, {"val/acc@5": 0.5, long + "1": 1.0})
        journal.array("val/per@class", 1, [1.0])
    first = ship(work_dir)
    with Journal(work_dir) as journal:  # the resumed run has further names, one of which is MLflow's for another
        journal.metrics(2, {"val/acc_5": 0.25, "val/acc@5": 0.75, "val/acc#5": 0.125, long + "2": 2.0})
        journal.params({"model.a@b": "3"})
        journal.tags({"team@": "c"})
        journal.array("val/per_class", 2, [2.0])
        journal.status("FINISHED")
    shipment = ship(work_dir)
    assert shipment.complete
    assert shipment.notes == ()
    run = client.get_run(str(first.run_id))
    found = values(client, run.info.run_id)
    assert sorted(found.values()) == [[0.125], [0.25], [0.5, 0.75], [1.0], [2.0]]
    assert found["val/acc_5"] == [0.5, 0.75]  # the first name to come
    assert sorted(run.data.params.values()) == ["1", "2", "3"]
    assert run.data.params["model.a_b"] == "1"
    assert sorted(value for key, value in run.data.tags.items() if key.startswith("team")) == ["a", "b", "c"]
    arrays = Path(run.info.artifact_uri.removeprefix("file://"), "arrays", "val")
    assert sorted(json.loads(file.read_text())["value"] for file in arrays.iterdir()) == [[1.0], [2.0]]

    assert len(shipment.renamed) == 8
    told = [line for line in str(Shipment((shipment, shipment))).splitlines() if "'val/acc_5'" in line]
    assert len(told) == 1  # for all jobs of a sweep
    assert "'val/acc@5'" in told[0]
    assert next(name for name in found if found[name] == [0.25]) in told[0]
    assert (work_dir / LOG).read_text().count("The metric 'val/acc_5'") == 1
    assert "The metric 'val/acc_5'" in str(shipment)

    (work_dir / FILE).unlink()  # to ship all once more
    again = ship(work_dir)
    assert again.complete
    assert again.renamed == shipment.renamed
    assert values(client, run.info.run_id) == found


def test_names_of_the_shipper_are_its_own(uri: str, new_run: NewRun) -> None:
    """A user's name does not become that of a tag by which a run is found again."""
    work_dir = new_run(uri)
    with Journal(work_dir) as journal:
        journal.tags({"trainyard//run_id": "path", "x/../trainyard.run_id": "mine"})
        journal.status("FINISHED")
    first = ship(work_dir)
    (work_dir / FILE).unlink()
    again = ship(work_dir)
    assert again.run_id == first.run_id
    assert "mine" in MlflowClient(uri).get_run(str(first.run_id)).data.tags.values()


@settings(max_examples=50)
@example(["..@", ".._"])
@given(st.lists(st.one_of(st.text("a@_/. ", max_size=4), st.text("ab", min_size=248, max_size=252)), max_size=12))
def test_every_name_has_one_of_its_own(names: list[str]) -> None:
    known: KnownNames = {}
    told: list[str] = []
    found = {name: Names(known, told.append)("metric", name) for name in names}
    assert len(set(found.values())) == len(found)
    for name in found.values():
        _validate_metric_name(name)
    later = Names(json.loads(json.dumps(known)), told.append)
    assert {name: later("metric", name) for name in reversed(names)} == found
    assert told == renamed(known)
    assert len(told) == len(found) - len({clean_name(name) for name in found})
