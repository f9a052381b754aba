"""Metrics of several members give each what its own would have given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from trainyard.errors import TrainyardError
from trainyard.fused.metrics import MemberMetrics, keep_metrics, stack_metrics
from trainyard.metrics import Accuracy, Metric, TorchMetric

CONF = Path(__file__).parents[2] / "conf" / "metric"
K = 4


class MeanOutput:
    """A metric as torchmetrics has them: the mean of the outputs, and of the targets."""

    def __init__(self) -> None:
        self.reset()

    def to(self, device: Any) -> MeanOutput:
        return self

    def update(self, outputs: Tensor, target: Tensor) -> None:
        self.sums += torch.stack([outputs.double().sum(), target.double().sum()])
        self.count += len(outputs)

    def compute(self) -> dict[str, Tensor]:
        outputs, target = self.sums / self.count
        return {"outputs": outputs, "target": target}

    def reset(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)
        self.count = 0

    def merge_state(self, other: MeanOutput) -> None:
        self.sums += other.sums
        self.count += other.count


class Spread(Metric):
    """Not stackable; reads nested outputs and a batch that is a mapping, and its state is a sum."""

    def process(self, batch: Any, outputs: Any) -> None:
        assert batch["name"] == "all"
        difference = outputs["heads"][0] - batch["label"]
        self.add({"sum": difference.sum(0), "count": torch.tensor(len(difference))})

    def compute(self) -> Tensor:
        return self.total("sum") / self.total("count")


OPTIONS = [*sorted({path.stem for path in CONF.glob("*.yaml")} - {"logged"}), "torchmetrics"]
"""`logged` reads what a LightningModule logs."""


def batches(option: str, stacked: bool) -> list[tuple[tuple[Tensor, Tensor], Tensor]]:
    """Batches of different sizes, each with the outputs of K members."""
    made = []
    for size in (8, 8, 3):
        own = [K] if stacked else []
        match option:
            case "classification":
                outputs, target = torch.randn(K, size, 10), torch.randint(10, (*own, size))
            case "language":
                outputs, target = torch.randn(K, size, 6, 20), torch.randint(20, (*own, size, 6))
            case _:
                outputs, target = torch.randn(K, size, 2), torch.randn(*own, size, 2)
        made.append(((torch.zeros(*own, size, 1), target), outputs))
    return made


def results(metrics: Mapping[str, Metric]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, metric in metrics.items():
        result = metric.compute()
        found.update(result if isinstance(result, dict) else {name: result})
    return found


def built(option: str) -> dict[str, Metric]:
    if option == "torchmetrics":
        return {"mean": TorchMetric(MeanOutput())}
    metrics: dict[str, Metric] = instantiate(OmegaConf.load(CONF / f"{option}.yaml").metric, _convert_="all")
    return metrics


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_equals_its_solo_runs(option: str, stacked: bool) -> None:
    given = built(option)
    metrics = stack_metrics(given, K, stacked=stacked)
    solos = [built(option) for _ in range(K)]
    kept = list(range(K))
    for turn in range(2):
        for batch, outputs in batches(option, stacked):
            if turn:
                outputs, batch = outputs[kept], tuple(part[kept] for part in batch) if stacked else batch  # type: ignore[assignment]
            for metric in metrics.values():
                metric.process(batch, outputs)
            for k, solo in enumerate(solos):
                for metric in solo.values():
                    metric.process(tuple(part[k] for part in batch) if stacked else batch, outputs[k])
        found, wanted = results(metrics), [results(solo) for solo in solos]
        for name, value in found.items():
            torch.testing.assert_close(value, torch.stack([result[name] for result in wanted]), rtol=1e-12, atol=0)
        # Half of them go on with what they have gathered.
        kept = [3, 1]
        solos = [solos[k] for k in kept] if not turn else solos
        if not turn:
            keep_metrics(metrics, torch.tensor(kept))
    for metric in metrics.values():
        assert metric.members == 2
        metric.reset()
        assert metric.state == {}
    assert all(metric.members is None and not metric.state for metric in given.values())


def test_nested_outputs_and_mappings() -> None:
    metric = stack_metrics({"spread": Spread()}, 3, stacked=True)["spread"]
    heads = torch.randn(3, 5, 2)
    label = torch.randn(3, 5, 2)
    metric.process({"label": label, "name": "all"}, {"heads": (heads, [heads]), "scale": torch.ones(3)})
    torch.testing.assert_close(metric.compute(), (heads - label).mean(1))

    assert isinstance(metric, MemberMetrics)
    metric.reset()
    metric.stacked = False
    metric.process({"label": label[0], "name": "all"}, {"heads": (heads,)})
    torch.testing.assert_close(metric.compute(), (heads - label[0]).mean(1))


def test_merge_is_member_by_member() -> None:
    outputs, target = torch.randn(2, 6, 3), torch.randint(3, (6,))
    whole, one, other = (stack_metrics({"m": TorchMetric(MeanOutput())}, 2)["m"] for _ in range(3))
    for metric, rows in ((whole, slice(None)), (one, slice(4)), (other, slice(4, None))):
        metric.process((0, target[rows]), outputs[:, rows])
    one.merge(other)
    torch.testing.assert_close(one.compute(), whole.compute())
    for wrong in (Accuracy(), stack_metrics({"m": TorchMetric(MeanOutput())}, 3)["m"]):
        with pytest.raises(TypeError):
            one.merge(wrong)


def test_results_of_different_shapes_are_refused() -> None:
    class Positives(Metric):
        def process(self, batch: Any, outputs: Tensor) -> None:
            self.add({"found": outputs[outputs > 0]})

        def compute(self) -> Tensor:
            return self.total("found")

    metric = stack_metrics({"positives": Positives()}, 2)["positives"]
    metric.process(None, torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    with pytest.raises(
        TrainyardError, match=r"Positives.compute\(\) returns results of the shapes \[1\] and \[2\]\. In a stack"
    ):
        metric.compute()


def test_torchmetrics_itself() -> None:
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed (the `test` extra has it)")
    metrics = stack_metrics(
        {"theirs": TorchMetric(torchmetrics.classification.MulticlassAccuracy(5, average="micro")), "ours": Accuracy()},
        3,
    )
    for _ in range(2):
        outputs, target = torch.randn(3, 20, 5), torch.randint(5, (20,))
        for metric in metrics.values():
            metric.process((0, target), outputs)
    theirs, ours = (metric.compute() for metric in metrics.values())
    assert isinstance(theirs, Tensor)
    assert isinstance(ours, Tensor)
    assert theirs.shape == (3,)
    torch.testing.assert_close(theirs.double(), ours, rtol=1e-6, atol=0)
