"""Outputs and targets that a metric is told to read, functions as metrics, and what no metric takes."""

from typing import Any

import numpy as np
import pytest
import torch
from data_runs import stack_follows_members, trained, training
from sklearn.metrics import f1_score, mean_absolute_error, roc_auc_score
from torch import Tensor, nn

from trainyard.config.schema import check_nodes
from trainyard.data import ArrayData
from trainyard.distributed.rank_metric import RankMetric
from trainyard.errors import ConfigError, TrainyardError
from trainyard.metrics import Accuracy, FunctionMetric, configured
from trainyard.models import BaseModel

G = torch.Generator().manual_seed(0)
LOGITS, KIND = torch.randn(30, 3, generator=G), torch.randint(3, (30,), generator=G)
SIZES, SIZE = torch.randn(30, 1, generator=G), torch.randn(30, generator=G)
OUTPUTS = {"logits": LOGITS, "more": [SIZES]}
BATCH = {"x": torch.zeros(30, 2), "labels": {"kind": KIND, "size": SIZE}}
F1 = {"_target_": "sklearn.metrics.f1_score", "_partial_": True, "average": "macro"}
ACCURACY = {"_target_": "trainyard.metrics.Accuracy"}
PATHS = {"output": "logits", "target": "labels.kind"}


def one(config: dict[str, Any], batch: Any, *outputs: Any) -> float:
    (metric,) = configured({"m": config}).values()
    metric.process(batch, *outputs)
    result: Any = metric.compute()
    return float(result)


def test_a_metric_reads_what_it_is_told_to() -> None:
    right = (LOGITS.argmax(1) == KIND).float().mean().item()
    assert one(ACCURACY | PATHS, BATCH, OUTPUTS) == pytest.approx(right)
    assert one(F1 | PATHS, BATCH, OUTPUTS) == pytest.approx(f1_score(KIND, LOGITS.argmax(1), average="macro"))
    error = {"_target_": "trainyard.metrics.MeanAbsoluteError", "output": "more.0", "target": "labels.size"}
    assert one(error, BATCH, OUTPUTS) == pytest.approx(mean_absolute_error(SIZE, SIZES[:, 0]))
    assert one(ACCURACY | {"output": 1}, (None, KIND), (SIZES, LOGITS)) == pytest.approx(right)


def test_torchmetrics_reads_it_too() -> None:
    pytest.importorskip("torchmetrics")
    theirs = {"_target_": "torchmetrics.classification.MulticlassF1Score", "num_classes": 3, "average": "macro"}
    assert one(theirs | PATHS, BATCH, OUTPUTS) == pytest.approx(one(F1 | PATHS, BATCH, OUTPUTS))
    check_nodes({"metric": {"f1": theirs | PATHS, "f2": F1 | PATHS, "accuracy": ACCURACY | PATHS}})


class Pair:
    """An object with attributes, as libraries return them."""

    def __init__(self) -> None:
        self.logits = LOGITS


def test_attributes_are_read() -> None:
    assert one(ACCURACY | {"output": "logits"}, (None, KIND), Pair()) > 0


def test_what_no_metric_takes_is_told_with_its_shape() -> None:
    with pytest.raises(TrainyardError, match=r"logits \[30, 3\] float32.* \+metric\.m\.output=logits selects"):
        one(ACCURACY, (None, KIND), OUTPUTS)
    with pytest.raises(
        TrainyardError, match=r"a tuple with 2 elements \(\[30, 1\] float32, \[30, 3\].*metric\.m\.output=0"
    ):
        one(ACCURACY, (None, KIND), (SIZES, LOGITS))
    with pytest.raises(
        TrainyardError, match=r"a list with 2 elements \({boxes}, {boxes}\) .*, but the metric needs two tensors\.$"
    ):
        one(ACCURACY, (None, KIND), [{"boxes": SIZES}] * 2)
    with pytest.raises(
        TrainyardError, match=r"metric\.m\.output: There is no 'scores' in the outputs\. The value is a dict of logits"
    ):
        one(ACCURACY | {"output": "scores"}, (None, KIND), OUTPUTS)
    with pytest.raises(TrainyardError, match=r"metric\.m\.target: There is no 'labels.sort' in the batch"):
        one(ACCURACY | PATHS | {"target": "labels.sort"}, BATCH, OUTPUTS)
    with pytest.raises(TrainyardError, match=r"outputs are a tensor \[30, 3\].*target is a tensor \[4\]"):
        one(F1, (None, KIND[:4]), LOGITS)
    pytest.importorskip("torchmetrics")
    theirs = {"_target_": "torchmetrics.classification.MulticlassF1Score", "num_classes": 5}
    with pytest.raises(TrainyardError, match=r"MulticlassF1Score: the outputs are a tensor \[30, 3\]"):
        one(theirs, (None, KIND), LOGITS)
    with pytest.raises(TrainyardError, match=r"outputs are a dict of .* \+metric\.m\.output=logits selects"):
        one(theirs, (None, KIND), {"logits": LOGITS})


def test_wrong_paths() -> None:
    for key, path in (("output", "a..b"), ("target", True), ("output", -1)):
        with pytest.raises(ConfigError, match=r"a path of keys") as caught:
            configured({"m": ACCURACY | {key: path}})
        assert caught.value.key == f"metric.m.{key}"
    with pytest.raises(ConfigError, match="the output of this metric cannot be selected"):
        configured({"m": {"_target_": "trainyard.metrics.energy_distance.EnergyDistance", "output": "a"}})


# --- functions


def test_scores_are_probabilities() -> None:
    auc = {"_target_": "sklearn.metrics.roc_auc_score", "_partial_": True}
    y = KIND.clamp(max=1)
    expected = roc_auc_score(y, LOGITS[:, :2].double().softmax(1)[:, 1])
    assert one(auc, (None, y), LOGITS[:, :2]) == pytest.approx(expected)
    assert one(auc | {"multi_class": "ovr"}, (None, KIND), LOGITS) > 0


def worst(preds: Tensor, target: Tensor) -> dict[str, Tensor]:
    assert isinstance(preds, Tensor)
    return {"worst": (preds - target).abs().max()}


def test_functions_of_tensors_and_several_results() -> None:
    metric = FunctionMetric(worst)
    metric.process((None, SIZE), SIZES)
    assert metric.compute()["worst"].item() == pytest.approx((SIZES[:, 0] - SIZE).abs().max().item())


def test_tokens_are_counted_and_padding_is_not() -> None:
    target = KIND.view(10, 3).clone()
    target[:, 2] = -100
    expected = f1_score(target[:, :2].flatten(), LOGITS.view(10, 3, 3)[:, :2].argmax(-1).flatten(), average="macro")
    assert one(F1, (None, target), LOGITS.view(10, 3, 3)) == pytest.approx(expected)


def test_batches_and_ranks_are_put_together() -> None:
    (whole,) = configured({"m": F1}).values()
    ranks = [RankMetric(configured({"m": F1 | PATHS})["m"], rank, 2) for rank in range(2)]
    for number, own in enumerate(torch.arange(30).split(8)):
        whole.process((None, KIND[own]), LOGITS[own])
        ranks[number % 2].process({"labels": {"kind": KIND[own]}}, {"logits": LOGITS[own]})
    packed: list[Any] = []
    for rank in ranks:
        rank._gather = lambda part: packed.append(part) or [part]  # type: ignore[func-returns-value]
        rank.compute()
    ranks[0]._result = None
    ranks[0]._gather = lambda _: packed
    assert torch.equal(ranks[0].compute(), whole.compute())
    assert float(whole.compute()) == pytest.approx(f1_score(KIND, LOGITS.argmax(1), average="macro"))
    whole.reset()
    with pytest.raises(TrainyardError, match="no batch"):
        whole.compute()


def test_functions_that_cannot_be_metrics() -> None:
    with pytest.raises(ConfigError, match=r"a parameter for targets.*Parameters of <lambda>: a, b"):
        FunctionMetric(lambda a, b: 0)
    with pytest.raises(ConfigError, match=r"The parameters of dist are not known\. Call it in a Python function"):
        FunctionMetric(torch.dist)
    for returned, said in (
        (None, "returned a NoneType; it must return a number"),
        ("good", "returned a str; it must return a number, an array, or a dict of numbers and arrays"),
        ({"accuracy": 0.5, "macro avg": {"recall": 0.5}}, "returned a dict whose entry 'macro avg' is a dict; it must"),
    ):
        metric = FunctionMetric(lambda y_true, y_pred, returned=returned: returned)
        metric.process((None, KIND), LOGITS)
        with pytest.raises(TrainyardError, match=said):
            metric.compute()
    with pytest.raises(TrainyardError, match=r"f1_score failed: .* The targets are .*\[30\]"):
        one(F1 | {"average": "binary"}, (None, KIND), LOGITS)


# --- runs


class Rooms(ArrayData):
    """Points with a kind and a size."""

    def __init__(self) -> None:
        x = torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
        named = {"x": x, "kind": (x[:, 0] > 0).long(), "size": x.sum(1)}
        parts = {"train": slice(0, 40), "val": slice(40, 60)}
        super().__init__({s: {n: t[own] for n, t in named.items()} for s, own in parts.items()}, {}, batch_size=10)


class Two(BaseModel):
    """Two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.size = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, x: Tensor, kind: Any = None, size: Any = None, mode: str = "tensor") -> Any:
        outputs = {"logits": self.kind(x), "size": self.size(x)}
        if mode != "loss":
            return outputs
        return {
            "loss_kind": nn.functional.cross_entropy(outputs["logits"], kind),
            "loss_size": (outputs["size"][:, 0] - size).square().mean(),
        }


VALUES = training(
    {"_target_": Rooms},
    {"_target_": Two},
    metric={
        "accuracy": ACCURACY | {"output": "logits", "target": "kind"},
        "f1": F1 | {"output": "logits", "target": "kind"},
        "mae": {"_target_": "trainyard.metrics.MeanAbsoluteError", "output": "size", "target": "size"},
    },
    objective="val/f1",
    hook={"train": {"_target_": "trainyard.hooks.TrainMetrics", "batches": None}},
)


def test_a_model_of_two_heads_is_evaluated() -> None:
    runner = trained(VALUES)
    found = runner.members[0].metrics
    data: Any = runner.data
    for split, name in (("train", "train_eval"), ("val", "val")):
        source = data.sources[split]
        outputs = runner.model.eval()(source["x"], mode="predict")
        predicted = outputs["logits"].argmax(1)
        assert found[f"{name}/accuracy"] == pytest.approx((predicted == source["kind"]).double().mean().item())
        assert found[f"{name}/f1"] == pytest.approx(f1_score(source["kind"], predicted, average="macro"))
        assert found[f"{name}/mae"] == pytest.approx((outputs["size"][:, 0] - source["size"]).abs().mean().item())


def test_train_metrics_do_not_change_the_training() -> None:
    one, other = trained(VALUES), trained(VALUES | {"hook": {}})
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name])


def test_a_stack_of_two_heads_follows_its_members() -> None:
    stack_follows_members(VALUES)


# --- lists and graphs


def test_lists_of_detections() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")

    class Boxes(torchmetrics.Metric):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")

        def update(self, preds: list[dict[str, Tensor]], target: list[dict[str, Tensor]]) -> None:
            self.right += sum(bool((p["labels"] == t["labels"]).all()) for p, t in zip(preds, target, strict=True))

        def compute(self) -> Tensor:
            return self.right

    labels = [{"labels": torch.tensor([1, 2])}, {"labels": torch.tensor([3])}]
    found = [{"labels": torch.tensor([1, 2]), "boxes": torch.zeros(2, 4)}, {"labels": torch.tensor([4])}]
    (metric,) = configured({"m": Boxes()}).values()
    metric.process(([torch.zeros(3, 8, 8)] * 2, labels), found)
    assert metric.compute() == 1
    with pytest.raises(TrainyardError, match=r"a list with 2 elements \(\{labels, boxes\}"):
        Accuracy().process(([torch.zeros(3, 8, 8)] * 2, labels), found)


def test_graphs_train() -> None:
    geometric = pytest.importorskip("torch_geometric.data", reason="torch_geometric is not installed")
    from torch_geometric.loader import DataLoader  # type: ignore[import-not-found,unused-ignore]
    from torch_geometric.nn import GCNConv, global_mean_pool  # type: ignore[import-not-found,unused-ignore]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = GCNConv(2, 8), nn.Linear(8, 2)

        def forward(self, graphs: Any) -> Any:
            hidden = self.layer(graphs.x, graphs.edge_index).relu()
            return self.head(global_mean_pool(hidden, graphs.batch))

    rng = np.random.default_rng(0)
    graphs = []
    for label in rng.integers(0, 2, 64):
        x = torch.from_numpy(rng.normal(size=(5, 2)) + label).float()
        edges = torch.from_numpy(rng.integers(0, 5, (2, 8)))
        graphs.append(geometric.Data(x=x, edge_index=edges, y=torch.tensor([int(label)])))
    data = {"train": DataLoader(graphs[:48], 8, shuffle=True), "val": DataLoader(graphs[48:], 8)}
    metric = {"accuracy": ACCURACY, "f1": F1}
    model = {"_target_": "trainyard.models.Supervised", "net": {"_target_": Net}}
    runner = trained(training(data, model, metric=metric, objective="val/accuracy"))
    assert runner.members[0].metrics["val/accuracy"] > 0.6
