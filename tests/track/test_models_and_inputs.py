"""Models have the metrics of their step, are registered, and runs have their data."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from trainyard.errors import ConfigError, TrainyardError
from trainyard.track import Journal, MLflowTracker
from trainyard.track.shipped import Shipped
from trainyard.track.shipper.fleet import ship_now
from trainyard.track.shipper.store import Store, Stores
from trainyard.track.shipper.stored_model import stored_model

NewRun = Callable[..., Path]
INPUTS = [
    {
        "name": "digits/train",
        "digest": "0" * 32,
        "context": "train",
        "source": {"_target_": "trainyard.data.Digits"},
        "covers": "content",
        "rows": 7,
        "shapes": {"0": "float32 [1, 8, 8]", "1": "int64 []"},
    },
    {
        "name": "mine/val",
        "digest": "1" * 32,
        "context": "val",
        "source": {"path": "/there"},
        "shapes": {"x": "int64 [5]"},
    },
]


def load(work_dir: Path, checkpoint: Path) -> tuple[torch.nn.Module, Any]:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
    return net.eval(), np.zeros((1, 4), dtype=np.float32)


LOADER = f"{__name__}:load"


def finished(work_dir: Path, best: int = 10, form: str = "pickle") -> None:
    """A training of two epochs, whose model is the checkpoint of one of them; the test is of that one."""
    (work_dir / "best.pt").touch()
    with Journal(work_dir) as journal:
        journal.status("RUNNING")
        for epoch, (step, accuracy) in enumerate([(10, 0.9), (20, 0.8)], 1):
            journal.metrics(step, {"train/loss": 1 / step, "train/lr": 0.1}, epoch=epoch - 1)
            journal.metrics(step, {"val/accuracy": accuracy, "val/loss": 1 - accuracy}, epoch=epoch)
        journal.metrics(20, {"test/accuracy": 0.85}, epoch=2, of="model")
        journal.metrics(best, {"best/val/accuracy": 0.9}, epoch=best // 10)
        journal.model("best.pt", LOADER, step=best, form=form)
        journal.model("best.pt", LOADER, name="epoch_0002", step=20)
        journal.inputs(INPUTS)
        journal.status("FINISHED")


@pytest.mark.parametrize("where", ["database", "server"])
def test_models_have_the_metrics_of_their_step(where: str, request: Any, new_run: NewRun) -> None:
    uri = request.getfixturevalue("uri") if where == "database" else request.getfixturevalue("server").uri
    work_dir = new_run(uri, f"ranked {where}", python_path=[str(Path(__file__).parent)])
    finished(work_dir)
    shipment = ship_now(work_dir, Stores())
    assert (shipment.complete, shipment.notes) == (True, ())
    client = MlflowClient(uri)
    order = [{"field_name": "metrics.val/accuracy", "ascending": False}]
    found = client.search_logged_models(
        [str(shipment.experiment_id)], f"source_run_id = '{shipment.run_id}'", order_by=order
    )
    metrics = [{each.key: (each.value, each.step) for each in model.metrics or []} for model in found]
    assert [model.name for model in found] == ["model", "epoch_0002"]
    assert metrics[0].pop("test/accuracy") == (0.85, 20)
    assert metrics == [
        {"val/accuracy": (0.9, 10), "val/loss": (1 - 0.9, 10)},
        {"val/accuracy": (0.8, 20), "val/loss": (1 - 0.8, 20)},
    ]
    run = client.get_run(str(shipment.run_id))
    steps = {output.model_id: output.step for output in run.outputs.model_outputs}
    assert steps == {found[0].model_id: 10, found[1].model_id: 20}
    assert run.data.metrics["best/val/accuracy"] == 0.9
    for name in ("val/accuracy", "val/loss", "epoch", "train/loss"):  # each point once
        assert [point.step for point in client.get_metric_history(str(shipment.run_id), name)] == [10, 20]
    assert [point.value for point in client.get_metric_history(str(shipment.run_id), "epoch")] == [1.0, 2.0]
    inputs = {each.dataset.name: each for each in run.inputs.dataset_inputs}
    assert inputs.keys() == {"digits/train", "mine/val"}
    assert inputs["digits/train"].dataset.digest == "0" * 32
    assert inputs["digits/train"].tags[0].value == "train"
    assert mlflow.data.get_source(inputs["mine/val"].dataset).to_dict() == {"uri": "/there"}
    assert '"num_rows": 7' in inputs["digits/train"].dataset.profile


def test_shipped_again_all_stay_as_they_are(uri: str, new_run: NewRun) -> None:
    work_dir = new_run(uri)
    finished(work_dir)
    shipment = ship_now(work_dir, Stores())
    client = MlflowClient(uri)
    before = client.get_run(str(shipment.run_id)).to_dictionary()
    state = Shipped.load(work_dir, uri)
    state.offset = 0
    state.save(work_dir, uri)
    assert ship_now(work_dir, Stores()).complete
    assert client.get_run(str(shipment.run_id)).to_dictionary() == before
    assert len(client.search_logged_models([str(shipment.experiment_id)])) == 2


class Requests:
    """Counts the calls of a store's client."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if not callable(method):
            return method

        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(name)
            return method(*arguments, **named)

        return call


def test_a_job_of_a_sweep_has_the_digests_without_a_request(uri: str, new_run: NewRun) -> None:
    runs = {}
    for name, parent in (("alone", None), ("job", "a" * 32)):
        work_dir = new_run(uri, name, parent=parent)
        with Journal(work_dir) as journal:
            journal.inputs(INPUTS)
            journal.status("FINISHED")
        runs[name] = MlflowClient(uri).get_run(str(ship_now(work_dir, Stores()).run_id))
    assert {run.data.tags["data.digest"] for run in runs.values()} == {f"train={'0' * 32} val={'1' * 32}"}
    assert [len(runs[name].inputs.dataset_inputs) for name in ("alone", "job")] == [2, 0]


def test_what_a_run_costs(uri: str, new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """All points of a small run in one request, and one more for the data, and for the metrics of a model."""
    stores = Stores()
    store: Store = stores.get(uri)
    requests: Any = Requests(store.client)
    monkeypatch.setattr(store, "_client", requests)
    work_dir = new_run(uri)
    finished(work_dir)
    assert ship_now(work_dir, stores).complete
    model = [
        "search_logged_models",
        "create_logged_model",
        "log_model_artifacts",
        "finalize_logged_model",
        "log_outputs",
    ]
    assert sorted(requests.calls) == sorted(
        ["get_experiment_by_name", "create_experiment", "get_experiment", "search_runs", "create_run"]
        + ["log_batch", "log_inputs", "set_terminated"]
        + 2 * [*model, "log_batch"]
    )


def test_an_exported_model_needs_no_code(uri: str, new_run: NewRun, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "exported_net.py").write_text(
        "import numpy as np, torch\n"
        "def load(work_dir, checkpoint):\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8)).eval()\n"
        "    return net, np.zeros((1, 4), dtype=np.float32)\n"
        "def predict(net, x):\n    return net(x) + 5\n"
        "def untraceable(net, x):\n    return x if float(x.sum()) > 0 else x + 1\n"
    )
    work_dir = new_run(uri, python_path=[str(tmp_path / "mine")])
    (work_dir / "best.pt").touch()
    with Journal(work_dir) as journal:
        journal.model("best.pt", "exported_net:load", "exported_net:predict", form="export", step=1)
        journal.model("best.pt", "exported_net:load", "exported_net:untraceable", form="export", step=1, name="other")
        journal.status("FINISHED")
    shipment = ship_now(work_dir, Stores())
    assert shipment.complete
    assert [note.partition(":")[0] for note in shipment.notes] == ["model other"]
    assert "torch.export cannot trace the model" in shipment.notes[0]
    mlflow.set_tracking_uri(uri)
    info = mlflow.models.get_model_info(f"runs:/{shipment.run_id}/model")
    assert "code" not in info.flavors["python_function"]
    served = mlflow.pyfunc.load_model(f"runs:/{shipment.run_id}/model")
    assert served.predict(np.zeros((3, 4), dtype=np.float32)).shape == (3, 8)
    assert (served.predict(np.zeros((1, 4), dtype=np.float32)) > 3).all()  # 5 was added
    with pytest.raises(TrainyardError, match=r"torch\.export program .*mlflow\.pyfunc\.load_model\('runs:/"):
        stored_model(str(shipment.run_id), uri, trust=True)


def test_an_exported_model_waits_for_space_on_the_temporary_disk(
    uri: str, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = new_run(uri, python_path=[str(Path(__file__).parent)])
    (work_dir / "best.pt").touch()
    with Journal(work_dir) as journal:
        journal.model("best.pt", "test_models_and_inputs:load", form="export", step=1)
        journal.status("FINISHED")

    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.pytorch, "save_model", full)
        shipment = ship_now(work_dir, Stores())
    assert not shipment.complete
    assert not shipment.notes
    assert ship_now(work_dir, Stores()).complete


def test_the_model_of_another_run_is_registered_when_it_is_there(uri: str, new_run: NewRun) -> None:
    sweep, job = new_run(uri, "sweep"), new_run(uri, "sweep/3", python_path=[str(Path(__file__).parent)])
    with Journal(sweep) as journal:
        journal.register("digits", "champion", of="3")
        journal.status("FINISHED")
    stores = Stores()
    assert ship_now(sweep, stores).unshipped == 1
    finished(job)
    run = ship_now(job, stores)
    for _ in range(2):  # once more changes nothing
        assert ship_now(sweep, stores).complete
        state = Shipped.load(sweep, uri)
        state.offset = 0
        state.save(sweep, uri)
    client = MlflowClient(uri)
    (version,) = client.search_model_versions("name = 'digits'")
    assert version.run_id == run.run_id
    assert client.get_model_version_by_alias("digits", "champion").version == version.version
    shown = client.get_logged_model(version.tags["trainyard.model_id"]).tags["mlflow.modelVersions"]
    assert json.loads(shown) == [{"name": "digits", "version": version.version}]
    with Journal(sweep) as journal:
        journal.register("digits", "champion", of="4")
    assert "run.json cannot be read" in ship_now(sweep, stores).notes[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"register": "a/b"}, "register: 'a/b' is invalid"),
        ({"register": "a@b c"}, "register: 'a@b c' is invalid"),
        ({"register": "a@latest"}, "The alias latest is reserved by MLflow"),
        ({"register": "a", "log_model": False}, "log_model=false logs no model"),
        ({"log_model": "kep"}, "Expected true, false or kept"),
        ({"model_format": "onnx"}, "pickle, export"),
    ],
)
def test_settings_that_cannot_work(uri: str, settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        MLflowTracker(**settings)
