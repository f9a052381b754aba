"""Metrics of a file of predictions, in Python and on the command line."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from trainyard.data import Rings
from trainyard.errors import ConfigError, TrainyardError
from trainyard.evaluate import main, offline
from trainyard.hooks.predictions.file import PredictionWriter
from trainyard.metrics import Accuracy, Metric
from trainyard.metrics.energy_distance import EnergyDistance
from trainyard.runner import Runner
from trainyard.track import NoTracker, RunInfo

CONFIG = """
metric:
  accuracy: {_target_: trainyard.metrics.Accuracy, topk: [1, 2]}
  loss: {_target_: trainyard.metrics.CrossEntropy}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A run's predictions: 30 samples of 3 classes, in batches of 8."""
    NoTracker().open(tmp_path, RunInfo("run"))
    writer = PredictionWriter(tmp_path / "predictions.parquet")
    generator = torch.Generator().manual_seed(0)
    for start in range(0, 30, 8):
        n = min(8, 30 - start)
        target = torch.randint(3, (n,), generator=generator)
        writer.add((torch.zeros(n, 2), target), torch.randn(n, 3, generator=generator))
    writer.finish(split="test", spec={"num_classes": 3})
    return tmp_path / "predictions.parquet"


def shares(file: Path) -> float:
    frame = pd.read_parquet(file)
    return float((np.stack(frame["outputs"]).argmax(-1) == frame["targets"]).mean())


def test_numbers_and_arrays(file: Path) -> None:
    config = {"_target_": "trainyard.metrics.ConfusionMatrix"}
    found = offline(file, {"accuracy": Accuracy(), "confusion": config, "none": None})
    assert list(found) == ["test/accuracy", "test/confusion"]
    assert found["test/accuracy"] == pytest.approx(shares(file))
    assert np.trace(found["test/confusion"]) == found["test/accuracy"] * 30


@pytest.mark.parametrize("size", [1, 7, 30, 100])
def test_chunks_do_not_matter(file: Path, size: int) -> None:
    metrics = {"accuracy": Accuracy(), "loss": {"_target_": "trainyard.metrics.CrossEntropy"}}
    assert offline(file, metrics, chunk_size=size) == pytest.approx(offline(file, metrics), rel=1e-12)


def test_auto_is_what_the_data_said(file: Path) -> None:
    pytest.importorskip("torchmetrics")
    accuracy = {"_target_": "torchmetrics.classification.MulticlassAccuracy", "num_classes": "auto", "average": "micro"}
    assert offline(file, {"accuracy": accuracy}) == {"test/accuracy": pytest.approx(shares(file))}


def test_a_metric_that_reads_the_inputs(tmp_path: Path, file: Path) -> None:
    with pytest.raises(TrainyardError, match=r"metric.distance cannot be computed from .*: the metric reads batch.0"):
        offline(file, {"distance": EnergyDistance()})
    x, y = torch.randn(9, 2), torch.randint(2, (9,))
    writer = PredictionWriter(tmp_path / "all.parquet", inputs=True)
    writer.add((x, y), x + 1)
    writer.finish()
    whole = EnergyDistance()
    whole.process((x, y), x + 1)
    assert offline(tmp_path / "all.parquet", {"distance": EnergyDistance()}) == {"test/distance": whole.compute()}


def test_a_batch_without_a_target(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path / "a.parquet")
    writer.add(torch.zeros(2, 3), torch.zeros(2, 3))
    writer.finish()
    with pytest.raises(TrainyardError, match="has no target"):
        offline(tmp_path / "a.parquet", {"accuracy": Accuracy()})


class Last(Metric):
    """A user's, which takes the batch apart by itself and reads the target alone."""

    def process(self, batch: Any, outputs: Tensor) -> None:
        _, target = batch
        self.add({"sum": target.sum()})

    def compute(self) -> Tensor:
        return self.total("sum")


def test_a_batch_keeps_its_form(file: Path) -> None:
    assert offline(file, {"last": Last()}) == {"test/last": pd.read_parquet(file)["targets"].sum()}


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_chunks_that_cannot_be(file: Path, size: Any) -> None:
    with pytest.raises(ConfigError, match="chunk_size"):
        offline(file, {}, chunk_size=size)


def test_every_part_of_a_run_has_the_numbers_of_the_run(tmp_path: Path) -> None:
    """The default hooks: a test by itself writes the file, and the numbers are equal to the bit."""
    metrics = {
        name: {"_target_": f"trainyard.metrics.{name}"}
        for name in ("Accuracy", "CrossEntropy", "Perplexity", "BitsPerCharacter")
    }
    config = {"_target_": "trainyard.models.MLP", "in_features": "auto", "num_classes": "auto", "hidden": [16]}
    for precision in ("fp32", "bf16"):
        runner = Runner(
            config, Rings(1000), metrics=metrics, precision=precision, work_dir=tmp_path / precision, device="cpu"
        )
        (results,) = runner.test()
        found = offline(tmp_path / precision / "predictions.parquet", metrics)
        assert found == results


# --- the command line


def test_the_metrics_of_the_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "config.yaml").write_text(CONFIG)
    assert main([str(file)]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["test/accuracy", "test/top2", "test/loss"]
    assert float(lines["test/accuracy"]) == shares(file)
    assert main([str(file), "metric.accuracy.topk=[3]", "~metric.loss"]) == 0
    assert capsys.readouterr().out == "test/top3 1.0\n"


def test_a_run_from_elsewhere(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What its config names is run only if it is trusted."""
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path, elsewhere, ignore=shutil.ignore_patterns("elsewhere"))
    (elsewhere / "config.yaml").write_text(f"metric: {{evil: {{_target_: os.mkdir, path: {tmp_path}/executed}}}}\n")
    copy = str(elsewhere / file.name)
    assert main([copy]) == 2
    said = capsys.readouterr().err
    assert (
        "is not recognized as your own (it may be a copy or a download), and its config.yaml can run any code. Pass "
        in said
    )
    assert main([copy, "~metric.evil"]) == 2
    assert not (tmp_path / "executed").exists()
    assert main([copy, "metric=classification"]) == 0
    assert main([copy, "--trust"]) == 2, "it is no metric"
    assert (tmp_path / "executed").exists()


def test_an_option_of_the_group(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "metric=classification", "metric.accuracy.topk=[1,2]", "--chunk-size=4"]) == 0
    out = capsys.readouterr().out
    assert f"test/accuracy {shares(file)!r}\n" in out
    assert "test/top2" in out
    assert "test/confusion \n[[" in out


def test_an_option_of_ones_own(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conf" / "metric").mkdir(parents=True)
    (tmp_path / "conf/metric/mine.yaml").write_text("third: {_target_: trainyard.metrics.Accuracy, topk: 3}\n")
    assert main([str(file), "metric=mine", "--config-dir", str(tmp_path / "conf")]) == 0
    assert capsys.readouterr().out == "test/third 1.0\n"


def test_a_value_of_another_group(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conf" / "metric").mkdir(parents=True)
    option = "third: {_target_: trainyard.metrics.Accuracy, topk: '${model.k}'}\n"
    (tmp_path / "conf/metric/mine.yaml").write_text(option)
    arguments = [str(file), "metric=mine", "--config-dir", str(tmp_path / "conf")]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("metric.third.topk cannot be resolved, because only the group metric is composed here: ")
    assert said.endswith("Interpolation key 'model.k' not found. Set its value with metric.third.topk=….\n")
    assert main([*arguments, "metric.third.topk=3"]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            [],
            "metric: None is invalid. Expected an option of the group, such as metric=classification. The directory of",
        ),
        (
            ["metric=clasification"],
            "Expected one of classification, language, logged, regression. Did you mean 'classification'",
        ),
        (["optim.lr=1"], "metric: 'optim.lr=1' is invalid. Expected an override of metric"),
        (["metric="], "Expected one of"),
        (["metric=classification", "--config-dir", "nowhere"], "--config-dir: 'nowhere' is invalid"),
        (["metric.=1"], "Expected overrides of metric"),
        (
            ["metric=classification", "metric.acuracy.topk=1"],
            "metric.acuracy.topk: 'acuracy' is invalid. Expected a key of metric: accuracy, loss, confusion. Did you "
            "mean 'accuracy'? To add a new key, use +metric.acuracy.topk=…",
        ),
        (
            ["metric=classification", "+metric.accuracy.k=1", "~metric.accuracy.tpk"],
            "metric.accuracy.tpk: 'tpk' is invalid. Expected a key of metric.accuracy: _target_, topk, k. Did you mean "
            "'topk'? The config has no metric.accuracy.tpk to remove.",
        ),
        (["metric=classification", "metric.accuracy.topk.a=1"], "metric.accuracy.topk is a list and has no keys."),
        (["metric=regression"], "MeanSquaredError: outputs [8, 3] do not match the target [8]"),
        (["metric=classification", "--chunk-size=0"], "--chunk-size: 0 is invalid. Expected an integer of at least 1."),
    ],
)
def test_mistakes(file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert main([str(file), *arguments]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""


def test_a_key_that_the_metrics_of_the_run_lack(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("metric: {accuracy: {_target_: trainyard.metrics.Accuracy, topk: 1}}\n")
    assert main([str(file), "--trust", "metric.accuracy.tpk=3"]) == 2
    assert capsys.readouterr().err == (
        "metric.accuracy.tpk: 'tpk' is invalid. Expected a key of metric.accuracy: _target_, topk. Did you mean "
        "'topk'? To add a new key, use +metric.accuracy.tpk=…\n"
    )


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["metric=classification"], []):
        assert main([str(tmp_path / "none.parquet"), *arguments]) == 2
        assert "none.parquet does not exist" in capsys.readouterr().err


def test_as_a_command_with_a_class_of_ones_own(file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from trainyard.metrics import Accuracy\nclass Mine(Accuracy):\n    prefix = 'mine'\n"
    )
    (tmp_path / "config.yaml").write_text("metric: {accuracy: {_target_: mine.Mine}}\n")
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-m", "trainyard.evaluate", file.name]
    done = forked.run(command, cwd=tmp_path, env=environment)
    assert (done.stdout, done.stderr) == (f"test/mine/accuracy {shares(file)!r}\n", "")
