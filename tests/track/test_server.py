"""A real MLflow server: absent at first, then there."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import mlflow
import pytest
from mlflow import MlflowClient
from waiting import LIMIT

from trainyard.track import Journal, MLflowTracker, RunInfo
from trainyard.track.shipped import Shipped
from trainyard.track.shipper.fleet import ship_now
from trainyard.track.shipper.store import Stores

Points = dict[tuple[str, int], list[str]]
Journaled = Callable[[Path], Points]
Stored = Callable[[str, str], Points]


class Server(Protocol):
    """The server of conftest.py."""

    uri: str
    running: bool


pytestmark = pytest.mark.xdist_group("mlflow server")  # one worker starts it


def test_a_server_that_comes_later(
    absent_server: Server, tmp_path: Path, environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """Training ends as ever, says what is unshipped and how to ship it; and that works."""
    work_dir = tmp_path / "outputs" / "run"
    work_dir.mkdir(parents=True)
    (work_dir / "a.txt").write_text("a")
    tracker = MLflowTracker(uri=absent_server.uri, experiment="later", wait=LIMIT)
    tracker.open(work_dir, RunInfo(name="digits"))
    with Journal(work_dir) as journal:
        journal.metrics(1, {"loss": 1.0})
        journal.artifact("a.txt")
        journal.status("FINISHED")
    if absent_server.running:
        pytest.skip("an earlier test has started the server")
    shipment = tracker.finish()
    assert not shipment.complete
    (command,) = [line.partition("later: ")[2] for line in str(shipment).splitlines() if "trainyard sync" in line]
    assert command == f"trainyard sync {work_dir}"

    server = request.getfixturevalue("server")
    sync = subprocess.run(
        [sys.executable, "-m", *command.split()], env=environment, capture_output=True, text=True, check=True
    )
    assert "3 of these records were uploaded by this command" in sync.stdout
    client = MlflowClient(server.uri)
    (run,) = client.search_runs([client.get_experiment_by_name("later").experiment_id])
    assert (run.info.run_name, run.info.status) == ("digits", "FINISHED")
    assert run.data.metrics == {"loss": 1.0}
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["a.txt"]
    assert f"{server.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" in sync.stdout


def test_over_http(
    server: Server, new_run: Callable[..., Path], journaled: Journaled, stored: Stored, tmp_path: Path
) -> None:
    (tmp_path / "over_http.py").write_text("import torch\ndef load(*_):\n    return torch.nn.Linear(2, 1), None\n")
    work_dir = new_run(server.uri, python_path=[str(tmp_path)], params={f"p{n}": "x" * 6000 for n in range(200)})
    (work_dir / "a.txt").write_text("a")
    (work_dir / "best.pt").touch()
    with Journal(work_dir) as journal:
        for step in range(600):
            journal.metrics(step, {"loss": 1.0, "nan": math.nan})
        journal.metrics(600, {"inf": math.inf, "acc@5": 1.0})
        journal.array("confusion", 1, [[math.inf]])
        journal.artifact("a.txt", to="logs")
        journal.model("best.pt", "over_http:load")
        journal.status("FINISHED", "done")
    shipment = ship_now(work_dir, Stores())
    assert shipment.error is None
    assert shipment.notes == ()
    assert shipment.complete
    client = MlflowClient(server.uri)
    run = client.get_run(str(shipment.run_id))
    assert run.info.status == "FINISHED"
    assert len(run.data.params) == 200
    points = stored(server.uri, run.info.run_id)
    assert points.keys() == {("acc_5" if name == "acc@5" else name, step) for name, step in journaled(work_dir)}
    assert math.isnan(run.data.metrics["nan"])
    assert sorted(file.path for file in client.list_artifacts(run.info.run_id)) == ["arrays", "logs"]
    mlflow.set_tracking_uri(server.uri)
    assert mlflow.pytorch.load_model(f"runs:/{run.info.run_id}/model").in_features == 2

    state = Shipped.load(work_dir, server.uri)
    state.offset = 0
    state.save(work_dir, server.uri)
    assert ship_now(work_dir, Stores()) == shipment
    assert stored(server.uri, run.info.run_id) == points
