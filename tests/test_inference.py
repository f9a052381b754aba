"""`trainyard.load(run).predict(inputs)`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import save
from torch.utils.data import DataLoader, TensorDataset

import trainyard
from trainyard.batch import joined
from trainyard.errors import ConfigError, TrainyardError
from trainyard.hooks import Checkpoint
from trainyard.inference import Predictor
from trainyard.run import record
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.track.shipper.stored_model import is_run_id

VALUES: dict[str, Any] = {
    "mode": "train",
    "model": {
        "_target_": "trainyard.models.MLP",
        "in_features": "auto",
        "num_classes": "auto",
        "hidden": [8],
        "data_preprocessor": {"_target_": "trainyard.models.DataPreprocessor", "mean": 0.3, "std": 2.0},
    },
    "data": {"_target_": "trainyard.data.Rings", "num_samples": 100},
    "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
    "metric": {"accuracy": {"_target_": "trainyard.metrics.Accuracy"}},
    "seed": 3,
}
INPUTS = torch.linspace(-1, 1, 26).reshape(13, 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run's directory, and the predictions of its model."""
    folder = tmp_path_factory.mktemp("run")
    runner = Runner.from_cfg(
        VALUES,
        work_dir=folder,
        hooks={"checkpoint": Checkpoint()},
        loop=EpochBasedTrainLoop(2),
        objective="val/accuracy",
        direction="maximize",
        device="cpu",
    )
    record.write_files(runner, [VALUES], runner.members, record.example(runner))
    runner.train()
    with torch.no_grad():
        last = runner.model.eval().val_step((INPUTS,))
    return folder, last


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_a_directory_and_a_checkpoint(run: Any, batch_size: int) -> None:
    folder, last = run
    for model in (trainyard.load(folder, which="last"), trainyard.load(folder / "checkpoints" / "epoch_0002.pt")):
        for inputs in (INPUTS, INPUTS.numpy(), INPUTS.double().numpy(), list(INPUTS), {"x": INPUTS}):
            torch.testing.assert_close(model.predict(inputs, batch_size=batch_size), last)
    assert trainyard.load(str(folder), device="cpu")(INPUTS).shape == last.shape


def test_a_checkpoint_in_the_current_folder(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, last = run
    monkeypatch.chdir(folder / "checkpoints")
    torch.testing.assert_close(trainyard.load("epoch_0002.pt").predict(INPUTS), last)


def test_a_sharded_checkpoint(run: Any) -> None:
    """It is a folder, as FSDP writes it."""
    folder, last = run
    sharded = folder / "checkpoints" / "sharded.pt"
    save({}, checkpoint_id=sharded, no_dist=True)
    torch.save({"rest": torch.load(folder / "checkpoints" / "epoch_0002.pt"), "files": {}}, sharded / "rest.pt")
    torch.testing.assert_close(trainyard.load(sharded).predict(INPUTS), last)


def test_a_loader(run: Any) -> None:
    folder, last = run
    loader = DataLoader(TensorDataset(INPUTS, torch.zeros(13, dtype=torch.int64)), 4)
    torch.testing.assert_close(trainyard.load(folder, which="last").predict(loader), last)


@pytest.mark.parametrize("inner", [".", "checkpoints/epoch_0002.pt"])
def test_a_directory_from_elsewhere_is_loaded_only_if_trusted(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    folder, last = run
    copy = shutil.copytree(folder, tmp_path / "copy")
    name = f"theirs_{abs(hash(inner))}"
    (tmp_path / f"{name}.py").write_text("from trainyard.models import MLP\nopen(__file__ + '.executed', 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("trainyard.models.MLP", f"{name}.MLP"))
    with pytest.raises(TrainyardError, match=r"is not recognized as the directory of your own run.* Pass trust=True"):
        trainyard.load(copy / inner, which="last")
    assert not (tmp_path / f"{name}.py.executed").exists()
    torch.testing.assert_close(trainyard.load(copy / inner, which="last", trust=True).predict(INPUTS), last)
    assert (tmp_path / f"{name}.py.executed").exists()


class Detector(nn.Module):
    """Boxes of images of different sizes, a list for each image."""

    def forward(self, images: Any, mode: str = "tensor") -> Any:
        return [{"boxes": torch.tensor([[0, 0, *image.shape[-2:]]])} for image in images]


def test_samples_of_different_sizes() -> None:
    images = [torch.zeros(3, size, 4) for size in (2, 5, 3)]
    found = Predictor(Detector()).predict(images, batch_size=2)
    assert [each["boxes"].tolist() for each in found] == [[[0, 0, 2, 4]], [[0, 0, 5, 4]], [[0, 0, 3, 4]]]


def test_outputs_of_several_batches() -> None:
    parts: list[Any] = [
        {"a": (torch.zeros(2), [1]), "b": torch.tensor(1)},
        {"a": (torch.ones(1), [2]), "b": torch.tensor(2)},
    ]
    found = joined(parts)
    assert found["a"][0].tolist() == [0, 0, 1]
    assert found["a"][1] == [1, 2]
    assert found["b"].tolist() == [1, 2]


def test_what_cannot_be_loaded(run: Any, tmp_path: Path) -> None:
    folder, _ = run
    torch.save({}, tmp_path / "weights.pt")
    (tmp_path / "empty").mkdir()
    for given, told in (
        (tmp_path / "nowhere", "This file or folder does not exist."),
        (tmp_path / "weights.pt", "A weights file does not define a model; the config.yaml of a run does."),
        (tmp_path / "empty", "Expected the directory of a run with a checkpoint."),
        ("0" * 32, f"The MLflow database {tmp_path}/mlflow.db does not exist."),
    ):
        with pytest.raises(ConfigError) as error:
            trainyard.load(given, uri=f"sqlite:///{tmp_path}/mlflow.db")
        assert str(error.value).startswith(f"run: '{given}' is invalid")
        assert told in str(error.value)
    assert not (tmp_path / "mlflow.db").exists()
    with pytest.raises(ConfigError, match="which: 'first' is invalid"):
        trainyard.load(folder, which="first")
    model = trainyard.load(folder)
    for inputs, told in (
        ([], "at least one sample"),
        ("text", "an array of numbers or a tensor, a mapping or a list"),
        (np.array([1, "a"], dtype=object), "'ndarray of dtype object' is invalid. Expected an array of numbers"),
        (torch.tensor(1.0), "samples along the first axis"),
        (3, "inputs: 3 is invalid. Expected samples along the first axis"),
        (np.array(1.0), "samples along the first axis"),
        ({"x": torch.tensor(1.0)}, "samples along the first axis"),
        ({"a": [1], "b": [1, 2]}, "the same number"),
        ([[0.0, 1e39]], r"inputs: 1e\+39 is invalid. Expected numbers within the range of float32. Index: \[1\]"),
    ):
        with pytest.raises(ConfigError, match=told):
            model.predict(inputs)


def test_a_store_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("mlflow.pytorch")

    def load_model(*_: object, **__: object) -> None:
        raise MlflowException("API request to http://me:secret@host failed.\nMore lines")

    monkeypatch.setattr(module, "load_model", load_model)
    with pytest.raises(TrainyardError) as error:
        trainyard.load("0" * 32, uri="http://me:secret@host", trust=True)
    told = str(error.value)
    assert told.startswith(f"The model of the run '{'0' * 32}' cannot be loaded from http://")
    assert told.endswith(" failed. Expected the ID of a run in MLflow that has logged a model.")
    assert "secret" not in told


@pytest.mark.parametrize("name", ["{}", "runs:/{}"])
def test_a_model_in_mlflow_is_unpickled_only_if_trusted(tmp_path: Path, name: str) -> None:
    """Whoever can write to the store can replace the model."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment("theirs", (tmp_path / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.pytorch.log_model(Unpickled(tmp_path / "executed"), name="model", serialization_format="pickle")
    (tmp_path / "executed").unlink(missing_ok=True)
    given = name.format(run.info.run_id)
    with pytest.raises(
        TrainyardError, match=r"in MLflow \(sqlite:.*can run any code\. Pass trust=True if you trust it\."
    ):
        trainyard.load(given, uri=uri)
    assert not (tmp_path / "executed").exists()
    assert isinstance(trainyard.load(given, uri=uri, trust=True).model, Unpickled)
    assert (tmp_path / "executed").exists()


class Unpickled(nn.Module):
    """A model that writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.file.touch()


@pytest.mark.parametrize(("name", "is_one"), [("0" * 32, True), ("runs:/" + "a1" * 16, True), ("outputs/mine", False)])
def test_ids(name: str, is_one: bool) -> None:
    assert is_run_id(name) is is_one


def test_modules_of_the_package_need_no_import_of_their_own() -> None:
    code = (
        "import sys, trainyard; assert 'torch' not in sys.modules; trainyard.optim.build; trainyard.inference.Predictor"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_the_package_does_not_have() -> None:
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = trainyard.laod
