"""Metrics with MMEngine's two methods, as they are."""

import doctest
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from trainyard.distributed.rank_metric import RankMetric
from trainyard.errors import ConfigError, TrainyardError
from trainyard.fused.metrics import stack_metrics
from trainyard.metrics import Accuracy, MMEngineMetric, as_metric, mmengine
from trainyard.runner import EpochBasedTrainLoop, Runner


class Plain:
    """MMEngine's own example, without its base class."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        _, labels = data_batch
        self.results.append({"size": len(labels), "correct": (data_samples.argmax(-1) == labels).sum()})  # type: ignore[attr-defined]

    def compute_metrics(self, results: Any) -> Any:
        correct = sum(result["correct"] for result in results)
        assert all(result["correct"].device.type == "cpu" for result in results)
        return {"accuracy": correct / sum(result["size"] for result in results)}


def batches(sizes: Any = (50, 13, 7), seed: int = 0) -> Any:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 5, generator=g), torch.randint(5, (n,), generator=g)) for n in sizes]


def gathered(metric: Any, data: Any) -> Any:
    for batch in data:
        metric.process(batch, batch[0])
    return metric


def test_it_gives_what_ours_gives_and_forgets() -> None:
    metric = as_metric(Plain())
    assert isinstance(metric, MMEngineMetric)
    for seed in (0, 1):
        metric.reset()
        ours = gathered(Accuracy(), batches(seed=seed)).compute()
        torch.testing.assert_close(
            gathered(metric, batches(seed=seed)).compute()["accuracy"].double(), ours, rtol=1e-6, atol=0
        )
    assert metric.compute() == metric.compute(), "it may be asked again"


def test_mmengines_own_base_class() -> None:
    evaluator = pytest.importorskip("mmengine.evaluator", reason="mmengine is not installed")

    class Theirs(Plain, evaluator.BaseMetric):  # type: ignore[name-defined]
        default_prefix = "toy"

    metric = as_metric(Theirs())
    assert metric.prefix == "toy"
    assert gathered(metric, batches()).compute().keys() == {"accuracy"}


def test_data_elements_arrive_as_dicts() -> None:
    class Element:
        def __init__(self, value: Any) -> None:
            self.value = value

        def to_dict(self) -> Any:
            return {"pred": self.value}

    class Mean(Plain):
        def process(self, data_batch: Any, data_samples: Any) -> None:
            self.results += [sample["pred"] for sample in data_samples]  # type: ignore[attr-defined]

        def compute_metrics(self, results: Any) -> Any:
            return {"mean": float(np.mean(results)), "all": np.array(results)}

    metric = as_metric(Mean())
    metric.process(None, [Element(1.0), Element(2.0)])
    result = metric.compute()
    assert (result["mean"].item(), result["mean"].dtype) == (1.5, torch.float64)
    assert result["all"].tolist() == [1.0, 2.0]


def test_a_prefix() -> None:
    class Named(Plain):
        prefix = "own"

    assert as_metric(Plain()).prefix is None
    assert as_metric(Named()).prefix == "own"
    assert MMEngineMetric(Named(), prefix="other").prefix == "other"


def test_it_is_collected_across_ranks() -> None:
    data = batches((8, 8, 8, 5))
    whole = gathered(as_metric(Plain()), data).compute()
    other = gathered(RankMetric(as_metric(Plain()), 1, 2), data[1::2])
    packed = []
    other._gather = lambda part: (packed.append(part), [part])[1]  # type: ignore[func-returns-value]
    other.compute()
    first = gathered(RankMetric(as_metric(Plain()), 0, 2, gather=lambda part: [part, *packed]), data[::2])
    assert first.compute() == whole


def test_only_like_merges_with_like() -> None:
    one, other = (gathered(as_metric(Plain()), [batch]) for batch in batches((4, 6)))
    whole = gathered(as_metric(Plain()), batches((4, 6))).compute()
    one.merge(other)
    assert one.compute() == whole
    with pytest.raises(TypeError):
        one.merge(Accuracy())


def test_members_of_a_fused_group_have_one_each() -> None:
    (metric,) = stack_metrics({"accuracy": as_metric(Plain())}, 2).values()
    x, y = batches((9,))[0]
    metric.process((x, y), torch.stack([x, -x]))
    alone = [gathered(as_metric(Plain()), [(each, y)]).compute()["accuracy"] for each in (x, -x)]
    assert metric.compute()["accuracy"].tolist() == [each.item() for each in alone]


def test_in_a_run() -> None:
    runner = Runner(
        model={"_target_": "trainyard.models.MLP", "in_features": 2, "num_classes": 2, "hidden": [8]},
        data={"_target_": "trainyard.data.Rings", "num_samples": 200},
        optim={"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        metrics={"theirs": {"_target_": Plain}, "ours": {"_target_": Accuracy}},
        loop=EpochBasedTrainLoop(1),
        objective="val/accuracy",
        direction="maximize",
        device="cpu",
    )
    result = runner.train()[0]
    assert result["val/accuracy"] == pytest.approx(result["val/ours"])


@pytest.mark.parametrize("wrong", [3, {"accuracy": "high"}, {"accuracy": None}])
def test_results_that_are_no_numbers(wrong: Any) -> None:
    class Wrong(Plain):
        def compute_metrics(self, results: Any) -> Any:
            return wrong

    with pytest.raises(TrainyardError, match=r"Wrong\.compute_metrics returned a value of type (int|str|NoneType)"):
        as_metric(Wrong()).compute()


def test_a_class_is_no_metric() -> None:
    with pytest.raises(ConfigError, match="process and compute_metrics"):
        as_metric(Plain)


def test_the_example_runs() -> None:
    assert doctest.testmod(mmengine).failed == 0


class Named(torch.utils.data.Dataset[Any]):
    def __init__(self, classes: tuple[str, ...] = ("cat", "dog")) -> None:
        self.metainfo = {"classes": classes}

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return torch.ones(3), torch.tensor(0)


class OfClasses:
    dataset_meta: Any = None

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(len(self.dataset_meta["classes"]))  # type: ignore[attr-defined]

    def compute_metrics(self, results: Any) -> dict[str, float]:
        return {"classes": float(max(results))}


def test_the_metainfo_of_the_dataset_is_its_dataset_meta() -> None:
    sets = {"pets": DataLoader(Named()), "birds": DataLoader(Named(("owl", "jay", "tit")))}
    model = {"_target_": "trainyard.models.MLP", "in_features": 3, "num_classes": 2}
    runner = Runner(model, {"val": sets}, metrics={"mine": OfClasses()}, device="cpu", objective="val/pets/classes")
    assert runner.val() == [{"val/pets/classes": 2.0, "val/birds/classes": 3.0}]
