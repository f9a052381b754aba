"""Metrics whose results would have the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainyard.data import Rings
from trainyard.errors import ConfigError
from trainyard.fused.runner import FusedRunner
from trainyard.hooks import EMA
from trainyard.metrics import Accuracy, ConfusionMatrix, CrossEntropy, Metric, TorchMetric, results_of
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.track import read

ACCURACY = {"_target_": "trainyard.metrics.Accuracy", "topk": [1, 2]}
TWO = {"fine": ACCURACY | {"prefix": "fine"}, "coarse": ACCURACY | {"prefix": "coarse", "ignore_index": 0}}
CONFIG = {
    "model": {"_target_": "trainyard.models.MLP", "in_features": "auto", "num_classes": "auto", "hidden": [8]},
    "data": {"_target_": "trainyard.data.Rings", "num_samples": 200},
    "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
    "hook": {},
    "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 1},
    "device": "cpu",
}


def processed(**metrics: Metric) -> dict[str, Metric]:
    for metric in metrics.values():
        metric.process((0, torch.tensor([0, 1])), torch.eye(2))
    return metrics


def test_names() -> None:
    results = results_of(
        processed(
            fine=Accuracy([1, 2]),
            coarse=Accuracy([1, 2], prefix="coarse"),
            loss=CrossEntropy(),
            other=CrossEntropy(prefix="deep/er"),
        )
    )
    assert list(results) == ["accuracy", "top2", "coarse/accuracy", "coarse/top2", "loss", "deep/er/other"]


def test_a_metric_of_torchmetrics() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    theirs = TorchMetric(torchmetrics.MetricCollection([torchmetrics.MeanSquaredError()]), prefix="theirs")
    theirs.process((0, torch.zeros(3)), torch.ones(3))
    assert results_of({"errors": theirs}) == {"theirs/MeanSquaredError": 1}


@pytest.mark.parametrize(
    "metrics",
    [
        {"fine": Accuracy([1, 2]), "coarse": Accuracy([1, 5])},
        {"fine": Accuracy([1, 2], prefix="a"), "coarse": Accuracy([1, 5], prefix="a")},
        {"fine": Accuracy([1]), "accuracy": Accuracy()},
    ],
)
def test_two_results_of_one_name(metrics: dict[str, Metric]) -> None:
    first, second = metrics
    with pytest.raises(
        ConfigError, match=rf"metric.{second}: .*accuracy' is invalid.* metric.{first} also returns .*With the prefix "
    ):
        results_of(processed(**metrics))


@pytest.mark.parametrize("prefix", ["", "/", "a/", " a", 3])
def test_what_is_no_prefix(prefix: Any) -> None:
    with pytest.raises(ConfigError) as error:
        ConfusionMatrix(prefix=prefix)
    assert error.value.key == "prefix"


def test_own_metrics_take_one_as_a_class() -> None:
    class Own(CrossEntropy):
        prefix = "own"

    assert list(results_of(processed(loss=Own()))) == ["own/loss"]


def test_in_a_run(tmp_path: Path) -> None:
    runner = Runner(
        CONFIG["model"],
        Rings(num_samples=200),
        CONFIG["optim"],
        loop=EpochBasedTrainLoop(1),
        hooks={"ema": EMA(evaluate="both")},
        metrics=TWO,
        objective="val/coarse/accuracy",
        direction="maximize",
        work_dir=tmp_path,
        device="cpu",
    )
    (results,) = runner.train()
    names = {
        f"{where}/{prefix}/{key}" for where in ("val", "val_raw") for prefix in TWO for key in ("accuracy", "top2")
    }
    assert names == {name for name in results if name.startswith("val")}
    assert runner.members[0].best is not None
    journaled = {name for record, _ in read(tmp_path / "metrics.jsonl") for name in record.get("values", {})}
    assert names <= journaled


def test_a_clash_is_told_before_the_training() -> None:
    runner = Runner.from_cfg(CONFIG | {"metric": {"fine": ACCURACY, "coarse": ACCURACY}}, objective="val/accuracy")
    with pytest.raises(ConfigError, match=r"metric.coarse: 'accuracy' is invalid"):
        runner.train()
    assert runner.iter == 0


def test_in_a_fused_group() -> None:
    distance = {"_target_": f"{__name__}.Slow", "prefix": "slow"}  # one that is computed member by member
    config = CONFIG | {"metric": TWO | {"distance": distance}, "objective": "val/fine/accuracy"}
    configs = [config | {"seed": seed} for seed in (0, 1)]
    results = FusedRunner(configs).train()
    alone = [Runner.from_cfg(each).train()[0] for each in configs]
    for member, solo in zip(results, alone, strict=True):
        assert member.keys() == solo.keys() >= {"val/fine/top2", "val/coarse/accuracy", "val/slow/distance"}
        assert member == pytest.approx(solo, rel=1e-4)


class Slow(Metric):
    """Made for one run."""

    def process(self, batch: Any, outputs: Any) -> None:
        self.add({"sum": outputs.double().sum()})

    def compute(self) -> torch.Tensor:
        return self.total("sum")
