"""A run's model in MLflow is the checkpoint's."""

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from trainyard.track import Journal, read
from trainyard.track.shipped import Shipped, summary
from trainyard.track.shipper.fleet import ship_now
from trainyard.track.shipper.run_shipper import RunShipper
from trainyard.track.shipper.store import Stores

LOADER = """
import numpy as np
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))

    def forward(self, x, mode="tensor"):
        return self.layers(x)

def load(work_dir, checkpoint):
    print("some noise")
    assert checkpoint.is_relative_to(work_dir)
    net = Net()
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net, np.zeros((2, 4), dtype=np.float32)

def bare(work_dir, checkpoint):
    return load(work_dir, checkpoint)[0], None

def broken(work_dir, checkpoint):
    raise KeyError("no such model")
"""


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's, beside their train.py."""
    name = f"models_{tmp_path.name}"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / f"{name}.py").write_text(LOADER)
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    return name


def save(path: Path, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
    torch.save({f"layers.{key}": value for key, value in net.state_dict().items()}, path)
    return net.eval()


def test_the_model_is_the_checkpoint(uri: str, new_run: Callable[..., Path], loader: str, tmp_path: Path) -> None:
    work_dir = new_run(uri, python_path=[str(tmp_path / "mine")])
    nets = [save(work_dir / f"{seed}.pt", seed) for seed in range(3)]
    inputs = torch.randn(5, 4)
    client = MlflowClient(uri)
    mlflow.set_tracking_uri(uri)

    with Journal(work_dir) as journal:
        journal.model("0.pt", f"{loader}:load")
    unfinished = ship_now(work_dir, Stores())
    assert unfinished.complete
    with pytest.raises(mlflow.exceptions.MlflowException):  # the run was killed: it has no model
        mlflow.pytorch.load_model(f"runs:/{unfinished.run_id}/model")

    for number, function in ((1, "load"), (2, "bare")):  # the last one is what a resumed run ends with
        with Journal(work_dir) as journal:
            journal.model("0.pt", f"{loader}:broken")
            journal.model(f"{number}.pt", f"{loader}:{function}")
            journal.status("FINISHED")
        shipment = ship_now(work_dir, Stores())
        assert shipment.complete
        assert shipment.notes == ()
        model = mlflow.pytorch.load_model(f"runs:/{shipment.run_id}/model")
        assert not model.training
        assert torch.equal(model(inputs), nets[number](inputs))
        signature = mlflow.models.get_model_info(f"runs:/{shipment.run_id}/model").signature
        if function == "load":
            assert signature.inputs.inputs[0].shape == (-1, 4)
            assert signature.outputs.inputs[0].shape == (-1, 3)
            served = mlflow.pyfunc.load_model(f"runs:/{shipment.run_id}/model")
            assert torch.equal(torch.from_numpy(served.predict(inputs.numpy())), nets[number](inputs))
        else:
            assert signature is None

    state = Shipped.load(work_dir, uri)
    state.offset = 0
    state.save(work_dir, uri)
    assert ship_now(work_dir, Stores()).complete
    assert len(client.search_logged_models([str(shipment.experiment_id)])) == 2  # none twice


def test_a_model_that_does_not_load_holds_nothing_up(uri: str, new_run: Callable[..., Path], loader: str) -> None:
    for name, source in (("a", f"{loader}:broken"), ("b", "no_such_module:load"), ("c", f"{loader}:load")):
        work_dir = new_run(uri, name)
        (work_dir / "there.pt").write_bytes(b"no weights")
        with Journal(work_dir) as journal:
            journal.model("there.pt", source)
            journal.metrics(1, {"loss": 1.0})
            journal.status("FINISHED")
        shipment = ship_now(work_dir, Stores())
        assert shipment.complete
        (note,) = shipment.notes
        assert note.startswith("model: ")
        assert MlflowClient(uri).get_run(str(shipment.run_id)).info.status == "FINISHED"


def test_a_checkpoint_that_was_never_saved_is_named(uri: str, new_run: Callable[..., Path], loader: str) -> None:
    work_dir = new_run(uri, "bare")
    with Journal(work_dir) as journal:
        journal.model("checkpoints/best.pt", f"{loader}:load")
        journal.status("FINISHED")
    assert ship_now(work_dir, Stores()).notes == ("model: there is no checkpoint checkpoints/best.pt",)


@pytest.mark.parametrize("shipped", [False, True])
def test_a_model_that_was_withdrawn_is_not_missed(
    uri: str, new_run: Callable[..., Path], loader: str, tmp_path: Path, shipped: bool
) -> None:
    """Also if the shipper has read its record before."""
    work_dir = new_run(uri, "withdrawn", python_path=[str(tmp_path / "mine")])
    save(work_dir / "1.pt", 1)
    shipper = RunShipper(work_dir, Stores())
    with Journal(work_dir) as journal:
        journal.withdraw_model()  # no effect, because no model has been recorded
        journal.model("checkpoints/best.pt", f"{loader}:load")
        journal.model("1.pt", f"{loader}:load", name="kept")
        if shipped:
            shipper.step()
        journal.withdraw_model()
        journal.withdraw_model()
        journal.status("FINISHED")
    shipper.step()
    shipper.release()
    found = summary(work_dir)
    assert found.complete
    assert found.notes == ()
    models = MlflowClient(uri).search_logged_models([str(found.experiment_id)])
    assert [model.name for model in models] == ["kept"]
    records = [record for record, _ in read(work_dir / "metrics.jsonl") if record["kind"] == "model"]
    assert [record["checkpoint"] for record in records] == ["checkpoints/best.pt", "1.pt", None]
