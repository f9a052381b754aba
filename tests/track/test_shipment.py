"""What a command says at its end of the runs that it has tracked."""

from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace
from typing import cast

import pytest

from trainyard.track import Journal, MLflowTracker, RunInfo, RunShipment, Shipment
from trainyard.track.shipped import LOG

URI = "http://host:5000"


def shipped(name: str, *, left: int = 0, run_id: str | None = "a") -> RunShipment:
    return RunShipment(Path("/outputs", name), name, URI, "1", run_id, shipped=5, unshipped=left, error=None)


def test_a_single_run() -> None:
    assert Shipment().arrived == ""
    first, second = Shipment((shipped("mlp"),)).arrived.splitlines()
    assert first == f"run 'mlp'; {URI}/#/experiments/1/runs/a?workflowType=machine_learning"
    assert second.strip() == f"all runs: {URI}/#/experiments/1/runs?workflowType=machine_learning"
    assert Shipment((shipped("mlp", left=6, run_id=None),)).arrived == ""


def test_runs_that_have_not_arrived_are_not_counted() -> None:
    sweep, jobs = shipped("sweep"), [shipped("0"), shipped("1", left=2), shipped("2", left=7, run_id=None)]
    assert Shipment((sweep, *jobs)).arrived.startswith("1 of 3 runs uploaded below 'sweep'; ")
    assert Shipment((sweep, jobs[0])).arrived.startswith("1 run uploaded below 'sweep'; ")
    assert Shipment((shipped("sweep", left=1, run_id=None), *jobs)).arrived == ""


def test_a_run_whose_status_is_missing_has_all_records() -> None:
    missing = replace(shipped("MLP"), error="MLflow did not respond.")
    assert str(Shipment((missing,))).startswith(f"Run MLP is not complete in MLflow ({URI}). MLflow did not respond.\n")
    assert str(Shipment((missing, missing))).startswith(f"2 runs are not complete in MLflow ({URI}).")


def test_a_directory_that_is_not_trusted_has_one_next_step() -> None:
    reason = "The directory is not recognized as your own. If you trust it, run: trainyard sync --trust /outputs/MLP"
    held = replace(shipped("MLP", left=2), error=reason)
    assert str(Shipment((held,))).endswith("--trust /outputs/MLP\nThe journal contains all records.")
    missing = Shipment((shipped("MLP", left=2), shipped("CNN", left=2)))
    assert str(missing).endswith("The journals contain all records. To upload them later: trainyard sync /outputs")


@pytest.mark.parametrize(
    ("status", "log", "said"),
    [
        (-9, "", "The shipper was killed by signal 9.\n"),
        (1, "Traceback", "The shipper ended early with exit status 1. See {log}.\n"),
    ],
)
def test_a_shipper_that_ended_early(tmp_path: Path, status: int, log: str, said: str) -> None:
    """The message refers to the log only if the log contains something."""
    tracker = MLflowTracker(uri=f"sqlite:///{tmp_path}/mlflow.db")
    tracker._ships = False
    tracker.open(tmp_path, RunInfo("run"))
    with Journal(tmp_path) as journal:
        journal.metrics(1, {"loss": 1.0})
    (tmp_path / LOG).write_text(log)
    tracker._runs[tmp_path] = None
    tracker._process = cast("Popen[bytes]", SimpleNamespace(returncode=status))
    assert said.format(log=tmp_path / LOG) in str(tracker._shipment(running=False))
