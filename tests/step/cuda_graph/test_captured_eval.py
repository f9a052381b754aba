"""A captured evaluation gives what the evaluation gives, bit for bit: on the CPU, by `RecordedGraph`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from captured_training import MODELS, pictures, same
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_graph import RecordedGraph
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainyard.fused.metrics import stack_metrics
from trainyard.fused.model import StackedModel
from trainyard.metrics import (
    Accuracy,
    BitsPerCharacter,
    ConfusionMatrix,
    CrossEntropy,
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    SumMetric,
)
from trainyard.metrics.energy_distance import EnergyDistance
from trainyard.models import MLP, BaseModel, Supervised
from trainyard.runner.evaluation import PlainEvaluation
from trainyard.step.cuda_graph.captured_eval import WARM_UP, CapturedEvaluation
from trainyard.step.precision import make_precision

CPU = torch.device("cpu")
CLASSIFIED = {
    "accuracy": lambda: Accuracy(),
    "top": lambda: Accuracy([1, 2]),
    "loss": lambda: CrossEntropy(),
    "bits": lambda: BitsPerCharacter(),
    "confusion": lambda: ConfusionMatrix(),
}


def batches_of(data: Any, sizes: Any = (6, 6, 3)) -> list[Any]:
    x, y = data(sum(sizes))
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def evaluated(
    graph: Any,
    model: Any,
    metrics: Any,
    passes: Any,
    *,
    watch: Any = None,
    precision: str = "fp32",
    told: Any = None,
    change: Any = None,
) -> Any:
    """Evaluate passes over batches; returns the metrics' states and results after each, and the evaluation."""
    found = []
    how = make_precision(precision, CPU)
    captured = CapturedEvaluation(graph, CPU, (told if told is not None else []).append) if graph is not None else None
    code = getattr(model, "code", model)
    for number, batches in enumerate(passes):
        if change is not None:
            change(number, model, metrics)
        model.eval()
        for metric in metrics.values():
            metric.reset()
        step = getattr(model, "val_step", None) or (lambda batch: model(batch[0], mode="predict"))

        def predict(batch: Any, step: Any = step) -> Any:
            return how.forward(step, batch)

        evaluation: Any
        if captured is None:
            evaluation = PlainEvaluation(predict, metrics)
        else:
            captured.begin(predict, metrics, {**dict(code.named_modules()), "": model}, watched=watch is not None)
            evaluation = captured
        with torch.no_grad():
            for batch in batches:
                outputs = evaluation(batch)
                if watch is not None:
                    watch(batch, outputs, metrics)
        evaluation.end()
        found.append({name: (dict(metric.state), metric.compute()) for name, metric in metrics.items()})
    return found, captured


def made(name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model, data = MODELS[name]
    return model(), data


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_and_metric(name: str, precision: str) -> None:
    """Three passes, with a batch of another shape at the end of each: both shapes are captured, and replayed."""
    graph, told = RecordedGraph(), []  # type: ignore[var-annotated]
    results = []
    for how in (None, graph):
        model, data = made(name)
        metrics = {key: make() for key, make in CLASSIFIED.items()}
        passes = [batches_of(data)] * 4
        found, captured = evaluated(how, model, metrics, passes, precision=precision, told=told)
        results.append(found)
    same(results[1], results[0])
    assert told == []
    assert captured.refusal is None
    assert graph.captures == 2
    assert graph.replays == 4 * 3 - 2 * WARM_UP


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_stack(name: str) -> None:
    results = []
    graph = RecordedGraph()
    for how in (None, graph):
        first, data = made(name)
        model = StackedModel([first, *(MODELS[name][0]() for _ in range(2))])
        metrics = stack_metrics({key: make() for key, make in CLASSIFIED.items()}, 3)
        results.append(evaluated(how, model, metrics, [batches_of(data)] * 3)[0])
    same(results[1], results[0])
    assert graph.replays == 3 * 3 - 2 * WARM_UP


def test_metrics_of_numbers() -> None:
    results = []
    for how in (None, RecordedGraph()):
        torch.manual_seed(0)
        model = Supervised(nn.Linear(4, 4), nn.MSELoss())
        metrics = {"mse": MeanSquaredError(), "mae": MeanAbsoluteError()}
        batches = [(torch.randn(5, 4), torch.randn(5, 4)) for _ in range(4)]
        results.append(evaluated(how, model, metrics, [batches] * 2)[0])
    same(results[1], results[0])


def test_a_metric_that_is_no_sum_metric_and_says_so() -> None:
    results = []
    for how in (None, RecordedGraph()):
        torch.manual_seed(0)
        model = Supervised(nn.Linear(2, 2), nn.MSELoss())
        batches = [(torch.randn(6, 2), torch.arange(6) % 2) for _ in range(4)]
        found, captured = evaluated(how, model, {"distance": EnergyDistance()}, [batches] * 2)
        results.append(found)
    same(results[1], results[0])
    assert captured.left_out == set()


@given(
    sizes=st.lists(st.sampled_from([1, 2, 5]), min_size=1, max_size=6),
    passes=st.integers(1, 4),
    watched=st.lists(st.booleans(), min_size=4, max_size=4),
)
@settings(max_examples=30)
def test_any_batches(sizes: Any, passes: int, watched: Any) -> None:
    """Also passes of one batch, and code that looks in some passes."""
    results = []
    for how in (None, RecordedGraph()):
        model, data = made("mlp")
        metrics = {key: make() for key, make in CLASSIFIED.items()}
        seen: list[Any] = []

        def watch(batch: Any, outputs: Any, metrics: Any, seen: Any = seen) -> None:
            seen.append((outputs, metrics["confusion"].compute(), metrics["loss"].compute()))

        look = watch if watched[0] else None
        found, _ = evaluated(how, model, metrics, [batches_of(data, sizes)] * passes, watch=look)
        results.append((found, seen))
    same(results[1], results[0])


def test_what_code_outside_holds_does_not_change() -> None:
    """Predictions and states that a hook keeps, compared when all is over."""
    kept: list[list[Any]] = []
    for how in (None, RecordedGraph()):
        model, data = made("mlp")
        kept.append([])

        def keep(batch: Any, outputs: Any, metrics: Any, held: Any = kept[-1]) -> None:
            held.append((outputs, metrics["confusion"].compute(), dict(metrics["loss"].state)))

        metrics = {"confusion": ConfusionMatrix(), "loss": CrossEntropy()}
        evaluated(how, model, metrics, [batches_of(data, [5, 5, 5])] * 3, watch=keep)
    same(kept[1], kept[0])
    assert len({outputs.sum().item() for outputs, _, _ in kept[1]}) == 3


def test_a_state_that_code_outside_changes() -> None:
    results = []
    for how in (None, RecordedGraph()):
        model, data = made("mlp")

        def meddle(batch: Any, outputs: Any, metrics: Any) -> None:
            if len(outputs) == 2:
                metrics["loss"].reset()

        batches = batches_of(data, [5, 5, 5, 2, 5])
        results.append(evaluated(how, model, {"loss": CrossEntropy()}, [batches] * 3, watch=meddle)[0])
    same(results[1], results[0])


def test_predictions_that_nobody_sees_are_not_copied() -> None:
    """A batch costs one operation besides the replay: the copy to where the graph reads."""

    class Still(RecordedGraph):
        def capture(self, function: Any) -> Any:
            _, result = super().capture(function)
            return (lambda: None), result

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found.append(str(function))
            return function(*args, **(kwargs or {}))

    found: list[str] = []
    model, data = made("mlp")
    captured = CapturedEvaluation(Still(), CPU, print)
    modules = dict(model.eval().named_modules())
    with torch.no_grad():
        captured.begin(model.val_step, {"loss": CrossEntropy(), "accuracy": Accuracy()}, modules, watched=False)
        for index, batch in enumerate(batches_of(data, [6] * 8)):
            if index == 5:
                with Operations():
                    assert captured(batch) is None
            else:
                captured(batch)
    assert found == ["aten._foreach_copy_.default"]


def test_a_zero_keeps_its_sign() -> None:
    class Negative(SumMetric):
        def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
            return {"sum": -(outputs.sum() * 0).abs()}

        def compute(self) -> Tensor:
            return self.total("sum")

    signs = []
    for how in (None, RecordedGraph()):
        model, data = made("mlp")
        found, _ = evaluated(how, model, {"zero": Negative()}, [batches_of(data, [5] * 4)] * 2)
        signs.append([math.copysign(1, each["zero"][1].item()) for each in found])
    assert signs[1] == signs[0] == [-1, -1]


# -- what cannot be captured -------------------------------------------------------------------------------------------


class Odd(MLP):
    """Predicts in a way that a graph cannot hold."""

    def __init__(self, what: str) -> None:
        super().__init__(in_features=64, num_classes=3, hidden=[8])
        self.what = what
        self.calls = 0
        self.scale = 1.0

    def val_step(self, batch: Any) -> Any:
        outputs = super().val_step(batch)
        match self.what:
            case "item":
                outputs = outputs * 2 if outputs.max().item() > 0 else outputs
            case "count":
                self.calls += 1
        return outputs * self.scale


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("item", "the code waits for the device (aten._local_scalar_dense.default)"),
        ("count", "calls keeps changing"),
    ],
)
def test_a_model_that_cannot_be_captured(what: str, reason: str) -> None:
    results, told, graph = [], [], RecordedGraph()  # type: ignore[var-annotated]
    for how in (None, graph):
        torch.manual_seed(0)
        model = Odd(what)
        metrics = {"loss": CrossEntropy(), "accuracy": Accuracy()}
        results.append(evaluated(how, model, metrics, [batches_of(pictures)] * 3, told=told)[0])
    same(results[1], results[0])
    assert told == [f"The evaluation is not captured: {reason}."]
    assert graph.captures == 0


def test_a_capture_that_fails_has_done_nothing() -> None:
    class Failing(RecordedGraph):
        def warm_up(self, function: Any) -> Any:
            return function(), None

    results, told = [], []  # type: ignore[var-annotated]
    for how in (None, Failing()):
        torch.manual_seed(0)
        model = Odd("item")
        results.append(evaluated(how, model, {"loss": CrossEntropy()}, [batches_of(pictures)] * 3, told=told)[0])
    same(results[1], results[0])
    assert told[0].startswith("The evaluation is not captured: CUDA error: operation not permitted")
    assert len(told) == 1


class Samples(BaseModel):
    """Predicts one object for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, *batch: Any, mode: str) -> Any:
        return [{"name": str(index), "score": row} for index, row in enumerate(self.layer(batch[0]))]


class Gathering(Metric):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Any] = []

    def process(self, batch: Any, outputs: Any) -> None:
        self.values.append(outputs)

    def compute(self) -> Tensor:
        return torch.tensor(len(self.values))

    def reset(self) -> None:
        self.values = []


def test_predictions_and_batches_that_are_no_tensors() -> None:
    told: list[str] = []
    batches = [(torch.randn(3, 2), torch.zeros(3)) for _ in range(4)]
    found, captured = evaluated(RecordedGraph(), Samples(), {"values": Gathering()}, [batches], told=told)
    assert found[0]["values"][1] == 4
    assert told[-1] == (
        "The evaluation is not captured: the predictions contain something other than tensors on the device."
    )
    told.clear()
    model = Supervised(nn.Linear(2, 2), nn.MSELoss())
    named = [(torch.randn(3, 2), "a", torch.randn(3, 2)) for _ in range(4)]

    def predict(batch: Any) -> Any:
        return model(batch[0], mode="predict")

    captured = CapturedEvaluation(RecordedGraph(), CPU, told.append)
    captured.begin(predict, {"mse": MeanSquaredError()}, dict(model.named_modules()), watched=False)
    for batch in named:
        captured(batch)
    assert told == ["The evaluation is not captured: a batch contains something other than tensors on the device."]


def test_many_shapes() -> None:
    told: list[str] = []
    results = []
    for how in (None, RecordedGraph()):
        model, data = made("mlp")
        found, _ = evaluated(how, model, {"loss": CrossEntropy()}, [batches_of(data, range(1, 11))] * 2, told=told)
        results.append(found)
    same(results[1], results[0])
    assert told == ["The evaluation is not captured: the batches have more than 8 shapes."]


class Waiting(SumMetric):
    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"sum": outputs.sum() if outputs.max().item() > 0 else outputs.sum() * 2}

    def compute(self) -> Tensor:
        return self.total("sum")


class Counting(SumMetric):
    """Counts its batches in a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        self.batches += 1
        return {"sum": outputs.sum()}

    def compute(self) -> Tensor:
        return self.total("sum") / self.batches


class Growing(Counting):
    """Keeps something of every batch in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Tensor] = []

    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        self.rows.append(outputs.mean())
        return {"sum": outputs.sum()}

    def compute(self) -> Tensor:
        return torch.stack(self.rows).sum() + self.total("sum")


class Own(CrossEntropy):
    """Has a `process` of its own, of which nothing is known."""

    def process(self, batch: Any, outputs: Any) -> None:
        super().process(batch, outputs * 2)


class Varying(SumMetric):
    """Has other sums for small batches."""

    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"few" if len(target) < 5 else "many": outputs.sum()}

    def compute(self) -> Tensor:
        return torch.stack([*self.state.values()]).sum()


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (Gathering, "Gathering is not marked as capturable"),
        (Own, "Own is not marked as capturable"),
        (Waiting, "the code waits for the device (aten._local_scalar_dense.default)"),
        (Counting, "batches keeps changing"),
        (Growing, "rows keeps changing"),
        (Varying, "the sums of the metric differ in names, shapes or dtypes between batches"),
    ],
)
def test_a_metric_that_cannot_be_captured(metric: Any, reason: str) -> None:
    """It is processed as ever; the prediction and the other metrics are captured, whatever their order."""
    for order in ((metric, CrossEntropy), (CrossEntropy, metric)):
        results, told, graph = [], [], RecordedGraph()  # type: ignore[var-annotated]
        for how in (None, graph):
            model, data = made("mlp")
            metrics = {kind.__name__: kind() for kind in order}
            results.append(evaluated(how, model, metrics, [batches_of(data)] * 6, told=told)[0])
        same(results[1], results[0])
        assert told == [f"The evaluation is captured without metric.{metric.__name__}: {reason}."]
        assert graph.replays > 3


def test_sums_on_the_host() -> None:
    """A graph would repeat them as they were when it was captured. The meta device stands for another than the host."""

    class Host(SumMetric):
        def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
            return {"sum": outputs.sum(), "count": torch.tensor(len(target))}

        def compute(self) -> Tensor:
            return self.total("count")

    told: list[str] = []
    model = Supervised(nn.Linear(2, 2), nn.MSELoss()).to("meta").eval()
    captured = CapturedEvaluation(RecordedGraph(), torch.device("meta"), told.append)
    metric = Host()
    with torch.no_grad():
        captured.begin(model.val_step, {"host": metric}, dict(model.named_modules()), watched=False)
        for _ in range(5):
            captured((torch.randn(3, 2, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta")))
        captured.end()
    assert told == [
        "The evaluation is captured without metric.host: not all sums of the metric are tensors on the device."
    ]
    assert metric.compute() == 15


# -- what changes ------------------------------------------------------------------------------------------------------


def scaled(number: int, model: Any, metrics: Any) -> None:
    model.scale = 1.0 if number < 3 else 3.0


def swapped(number: int, model: Any, metrics: Any) -> None:
    if number == 3:
        for parameter in model.parameters():
            parameter.data = parameter.data.clone() * 0.5


def trained(number: int, model: Any, metrics: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)


def ignoring(number: int, model: Any, metrics: Any) -> None:
    metrics["loss"].ignore_index = -100 if number < 3 else 1


@pytest.mark.parametrize(("change", "captures"), [(scaled, 2), (swapped, 2), (ignoring, 2), (trained, 1)])
def test_a_change_is_followed(change: Any, captures: int) -> None:
    """New contents of the same memory are read; another address, or another number of the code, is captured anew."""
    results, graph = [], RecordedGraph()
    for how in (None, graph):
        torch.manual_seed(0)
        model = Odd("nothing")
        passes = [batches_of(pictures, [5] * 6)] * 6
        results.append(evaluated(how, model, {"loss": CrossEntropy()}, passes, change=change)[0])
    same(results[1], results[0])
    assert graph.captures == captures


def test_a_change_in_the_middle_of_a_pass() -> None:
    results = []
    for how in (None, RecordedGraph()):
        torch.manual_seed(0)
        model = Odd("nothing")

        def watch(batch: Any, outputs: Any, metrics: Any, model: Any = model) -> None:
            model.scale = 2.0 if len(outputs) == 2 else model.scale

        passes = [batches_of(pictures, [5, 5, 5, 5, 2, 5, 5, 5, 5])] * 2
        results.append(evaluated(how, model, {"loss": CrossEntropy()}, passes, watch=watch)[0])
    same(results[1], results[0])


def test_what_changes_with_every_pass_is_not_captured() -> None:
    told: list[str] = []
    results = []
    for how in (None, RecordedGraph()):
        torch.manual_seed(0)
        model = Odd("nothing")

        def change(number: int, model: Any, metrics: Any) -> None:
            model.scale = 1.0 + number

        passes = [batches_of(pictures, [5] * 4)] * 6
        results.append(evaluated(how, model, {"loss": CrossEntropy()}, passes, change=change, told=told)[0])
    same(results[1], results[0])
    assert told == ["The evaluation is not captured: scale keeps changing."]


def test_other_metrics_and_another_model_are_other_graphs() -> None:
    """As when members leave a stack; that is no reason to give up."""
    told: list[str] = []
    captured, graph = None, RecordedGraph()
    captured = CapturedEvaluation(graph, CPU, told.append)
    for seed in range(6):
        torch.manual_seed(seed)
        model, (metric, plain) = Odd("nothing").eval(), (CrossEntropy(), CrossEntropy())
        with torch.no_grad():
            captured.begin(model.val_step, {"loss": metric}, dict(model.named_modules()), watched=False)
            for batch in batches_of(pictures, [5] * 4):
                captured(batch)
                plain.process(batch, model.val_step(batch))
            captured.end()
        same(metric.state, plain.state)
    assert graph.captures == 6
    assert told == []
