"""What a test writes into its run's directory."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trainyard.data import Rings
from trainyard.data.tensor_loader import TensorLoader
from trainyard.errors import ConfigError
from trainyard.evaluate import offline
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import PredictionDump
from trainyard.hooks.predictions.file import Predictions
from trainyard.models import Supervised
from trainyard.runner import Runner
from trainyard.track import read


def columns(path: Any) -> Any:
    """What is in the file, as pandas reads it."""
    frame = pd.read_parquet(path)
    return {name: np.stack(frame[name]) for name in frame}


METRICS = {
    "accuracy": {"_target_": "trainyard.metrics.Accuracy", "topk": [1, 2]},
    "loss": {"_target_": "trainyard.metrics.CrossEntropy"},
    "confusion": {"_target_": "trainyard.metrics.ConfusionMatrix"},
}


@pytest.fixture
def tested(make: Any, tmp_path: Path) -> Any:
    """A Runner that was tested, with this hook."""

    def tested(hook: Any, **more: Any) -> Any:
        runner = make({"predictions": hook}, metrics=METRICS, work_dir=tmp_path, **more)
        (runner.results,) = runner.test()
        return runner

    return tested


def artifacts(folder: Any) -> Any:
    return [record["path"] for record, _ in read(folder / "metrics.jsonl") if record["kind"] == "artifact"]


def test_from_them_come_the_numbers_of_the_test(tested: Any, tmp_path: Path) -> None:
    runner = tested(PredictionDump())
    results = offline(tmp_path / "predictions.parquet", METRICS)
    confusion = results.pop("test/confusion")
    assert results == runner.results, "to the bit"
    assert confusion.sum() == runner.loader("test").num_samples
    assert artifacts(tmp_path) == ["predictions.parquet"]


def test_they_are_in_the_order_of_the_data(tested: Any, tmp_path: Path) -> None:
    runner = tested(PredictionDump())
    found = columns(tmp_path / "predictions.parquet")
    x, y = (torch.cat(parts) for parts in zip(*runner.loader("test").batches(), strict=True))
    assert found["index"].tolist() == list(range(len(y)))
    assert np.array_equal(found["targets"], y)
    with torch.no_grad():
        outputs = runner.model.eval()(x, mode="predict")
    assert found["outputs"].dtype == np.float32
    np.testing.assert_allclose(found["outputs"], outputs, rtol=1e-5, atol=1e-6)


def test_inputs_too(tested: Any, tmp_path: Path) -> None:
    runner = tested(PredictionDump(inputs=True))
    x = torch.cat([x for x, _ in runner.loader("test").batches()])
    assert np.array_equal(columns(tmp_path / "predictions.parquet")["batch.0"], x)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["DataLoader", "TensorLoader"])
def test_a_test_set_that_is_shuffled_has_its_index(make: Any, tmp_path: Path, kind: str, workers: int) -> None:
    x, y = torch.randn(40, 2), torch.arange(40) % 2
    if kind == "DataLoader":
        loader = DataLoader(TensorDataset(x, y), 8, shuffle=True, num_workers=workers)
    else:
        loader = TensorLoader((x, y), 8, shuffle=True)  # type: ignore[assignment]
    hooks = {"predictions": PredictionDump(inputs=True)}
    runner = Runner(Supervised(nn.Linear(2, 2)), {"test": loader}, hooks=hooks, work_dir=tmp_path, device="cpu")
    runner.test()
    found = columns(tmp_path / "predictions.parquet")
    assert found["index"].tolist() != list(range(40))
    assert np.array_equal(found["batch.0"], x[found["index"]])


def test_not_after_a_training_unless_asked(make: Any, tmp_path: Path) -> None:
    for after, folder in ((False, "no"), (True, "yes")):
        runner = make({"predictions": PredictionDump(after_training=after)}, epochs=1, work_dir=tmp_path / folder)
        with runner.session():
            runner.train()
            runner.test()
        assert (tmp_path / folder / "predictions.parquet").exists() == after
        runner.test()  # this one is by itself
        assert (tmp_path / folder / "predictions.parquet").exists()


def test_nothing_without_a_directory(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make({"predictions": PredictionDump()}).test()
    assert not list(tmp_path.iterdir())


def test_large_ones(tested: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tested(PredictionDump(upload_mb=0))
    assert (tmp_path / "predictions.parquet").exists()
    assert artifacts(tmp_path) == []
    assert "larger than hook.predictions.upload_mb=0, so the file is not uploaded" in caplog.text
    (tmp_path / "predictions.parquet").unlink()
    caplog.clear()
    runner = tested(PredictionDump(max_mb=0.0001), resume=True)
    assert "not written: the predictions take more than" in caplog.text
    assert runner.results, "the test goes on"
    assert not [file for file in tmp_path.iterdir() if "predictions" in file.name]


class Ragged(nn.Module):
    """Predicts a tensor that is not one row for each sample."""

    def forward(self, x: Any, y: Any, mode: Any) -> Any:
        return {"loss": x.sum()} if mode == "loss" else {"points": x[:-1], "logits": x}


def test_what_does_not_fit_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hooks = {"predictions": PredictionDump()}
    Runner(Ragged(), Rings(num_samples=100), hooks=hooks, work_dir=tmp_path, device="cpu").test()
    assert "The predictions for test are not written: not every tensor has a row for each sample" in caplog.text
    assert not [file for file in tmp_path.iterdir() if "predictions" in file.name]


def test_several_test_sets(tmp_path: Path) -> None:
    x, y = torch.randn(20, 2), torch.arange(20) % 2
    sets = {"easy": TensorLoader((x, y), 8), "hard": TensorLoader((x[:5], y[:5]), 8)}
    hooks = {"predictions": PredictionDump()}
    runner = Runner(
        Supervised(nn.Linear(2, 2)), {"test": sets}, hooks=hooks, metrics=METRICS, work_dir=tmp_path, device="cpu"
    )
    (results,) = runner.test()
    for name, count in (("easy", 20), ("hard", 5)):
        file = tmp_path / f"predictions_{name}.parquet"
        assert len(Predictions.read(file)) == count
        found = offline(file, METRICS)
        assert found[f"test/{name}/accuracy"] == results[f"test/{name}/accuracy"]


def test_those_of_a_fused_group(tmp_path: Path) -> None:
    config = {
        "model": {"_target_": "trainyard.models.MLP", "in_features": "auto", "num_classes": "auto", "hidden": [8]},
        "data": {"_target_": "trainyard.data.Rings", "num_samples": 200},
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 1},
        "hook": {"predictions": {"_target_": "trainyard.hooks.PredictionDump", "after_training": True}},
        "metric": METRICS,
        "device": "cpu",
    }
    folders = [tmp_path / str(seed) for seed in range(3)]
    runner = FusedRunner([config | {"seed": seed, "work_dir": str(folders[seed])} for seed in range(3)])
    with runner.session():
        runner.train()
        results = runner.test()
    assert len({result["test/loss"] for result in results}) == 3
    for folder, result in zip(folders, results, strict=True):
        found = offline(folder / "predictions.parquet", METRICS)
        assert found["test/loss"] == pytest.approx(result["test/loss"], rel=1e-12)
        assert artifacts(folder) == ["predictions.parquet"]


@pytest.mark.parametrize(("key", "given"), [("inputs", "all"), ("max_mb", -1), ("upload_mb", "ten")])
def test_settings_that_cannot_be(key: str, given: int | str) -> None:
    with pytest.raises(ConfigError) as error:
        PredictionDump(**{key: given})
    assert error.value.key == key
