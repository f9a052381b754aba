"""What MLflow serves is what was evaluated, in a process that knows nothing of the run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from waiting import LIMIT

import trainyard
from trainyard.hooks import Hook
from trainyard.run import record
from trainyard.runner import Runner
from trainyard.track import RunInfo
from trainyard.track.shipper.__main__ import configure
from trainyard.track.shipper.fleet import ship_now
from trainyard.track.shipper.store import Stores

configure()

NET = """
import torch
from torch import nn
from torch.nn import functional as F

from trainyard.models import BaseModel


class Net(BaseModel):
    def __init__(self, in_features, num_classes, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.layer = nn.Linear(in_features, num_classes)

    def forward(self, x, y=None, mode="tensor"):
        from helpers.scores import shares

        scores = self.layer(x)
        if mode == "loss":
            return {"loss": F.cross_entropy(scores, y)}
        return shares(scores) if mode == "predict" else scores
"""
CLEAN = """
import sys
import mlflow
import numpy as np

model = mlflow.pyfunc.load_model(sys.argv[1])
np.save("predictions.npy", model.predict(np.load("inputs.npy")))
assert "nets" in sys.modules and "unrelated" not in sys.modules
"""


class Seen(Hook):
    """Keeps the last validation batch of a run and the predictions for it."""

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        self.inputs, self.outputs = data_batch[0].clone(), outputs.clone()


def train(folder: Path, seen: Seen) -> None:
    values: dict[str, Any] = {
        "mode": "train",
        "seed": 0,
        "device": "cpu",
        "work_dir": str(folder),
        "model": {
            "_target_": "nets.Net",
            "in_features": 2,
            "num_classes": 2,
            "data_preprocessor": {"_target_": "trainyard.models.DataPreprocessor", "mean": 1.0, "std": 3.0},
        },
        "data": {"_target_": "trainyard.data.Rings", "num_samples": 40, "batch_size": 8},
        "optim": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 1},
    }
    hooks = {
        "ema": {"_target_": "trainyard.hooks.EMA", "decay": 0.5},
        "checkpoint": {"_target_": "trainyard.hooks.Checkpoint"},
    }
    runner = Runner(
        **{key: value for key, value in values.items() if key != "mode"},
        metrics={"accuracy": {"_target_": "trainyard.metrics.Accuracy"}},
        objective="val/accuracy",
        hooks={**hooks, "seen": seen},
        info=RunInfo("served", config=record.CONFIG),
    )
    runner.prepare("train")
    with runner.session():
        record.write_files(runner, [values], runner.members, record.example(runner))
        runner.train()
        saved = sorted((folder / "checkpoints").glob("epoch_*.pt"))[-1]
        runner.members[0].journal.model(saved, record.LOADER, record.PREDICT)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a user's modules."""
    folder = tmp_path / "project"
    (folder / "helpers").mkdir(parents=True)
    (folder / "nets.py").write_text(NET)
    (folder / "helpers" / "scores.py").write_text("def shares(scores):\n    return scores.softmax(-1)\n")
    (folder / "unrelated.py").write_text("raise ImportError")
    (folder / "data.bin").write_bytes(b"large")
    monkeypatch.syspath_prepend(str(folder))
    for name in ("nets", "helpers", "helpers.scores"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store, which MLflow itself takes by default during the test."""
    found = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found)
    mlflow.set_tracking_uri(found)
    yield found
    mlflow.set_tracking_uri("")


def test_a_clean_process_serves_what_was_evaluated(uri: str, project: Path, tmp_path: Path) -> None:
    seen, run = Seen(), tmp_path / "run"
    train(run, seen)
    shipment = ship_now(run, Stores(), uri)
    assert shipment.complete
    assert shipment.notes == ()

    name = f"runs:/{shipment.run_id}/model"
    folder = Path(mlflow.artifacts.download_artifacts(name))
    assert sorted(str(file.relative_to(folder / "code")) for file in (folder / "code").rglob("*.py")) == [
        "helpers/scores.py",
        "nets.py",
    ]
    assert f"trainyard=={trainyard.__version__}" in (folder / "requirements.txt").read_text().splitlines()
    signature = mlflow.models.get_model_info(name).signature
    assert signature.inputs.inputs[0].shape == (-1, 2)
    assert signature.outputs.inputs[0].shape == (-1, 2)

    net = mlflow.pytorch.load_model(name)  # the model of its class, as ever
    assert type(net).__name__ == "Net"
    for loaded in (trainyard.load(shipment.run_id, uri=uri, trust=True), trainyard.load(run, which="last")):
        torch.testing.assert_close(loaded.predict(seen.inputs), seen.outputs)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    np.save(elsewhere / "inputs.npy", seen.inputs.numpy())
    done = subprocess.run(
        [sys.executable, "-c", CLEAN, name],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(Path(trainyard.__file__).parents[1]), "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    predictions = torch.from_numpy(np.load(elsewhere / "predictions.npy"))
    torch.testing.assert_close(predictions, seen.outputs)
    torch.testing.assert_close(predictions.sum(1), torch.ones(len(predictions)))  # those of `predict` mode
    trained = torch.load(sorted((run / "checkpoints").glob("epoch_*.pt"))[-1], weights_only=True)
    assert not torch.equal(trained["model"]["layer.weight"], trained["eval_model"]["layer.weight"])
