"""The captured evaluation on a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from captured_training import MODELS, same

from trainyard.fused.metrics import stack_metrics
from trainyard.fused.model import StackedModel
from trainyard.hooks import EMA, Logger
from trainyard.metrics import Accuracy, BitsPerCharacter, ConfusionMatrix, CrossEntropy, SumMetric
from trainyard.runner import EpochBasedTrainLoop, Runner
from trainyard.runner.evaluation import PlainEvaluation
from trainyard.step.cuda_graph.captured_eval import WARM_UP, CapturedEvaluation
from trainyard.step.cuda_graph.graph import CudaGraph
from trainyard.step.precision import make_precision
from trainyard.track import Journal, read
from trainyard.track.scalars import ScalarBuffer

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("deterministic")]
CUDA = torch.device("cuda")
METRICS = {"accuracy": Accuracy, "loss": CrossEntropy, "bits": BitsPerCharacter, "confusion": ConfusionMatrix}


@pytest.fixture(autouse=True)
def _sync_debug_mode() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def batches_of(data: Any) -> list[Any]:
    """Batches on the device, of which the last is smaller."""
    x, y = (part.to(CUDA) for part in data(15))
    return list(zip(x.split(6), y.split(6), strict=True))


def evaluated(
    captured: Any, model: Any, metrics: Any, batches: Any, *, precision: str = "fp32", passes: int = 4
) -> Any:
    """Evaluate passes over batches; returns the metrics' states after each."""
    how = make_precision(precision, CUDA)
    code = getattr(model, "code", model)
    found = []
    for _ in range(passes):
        for metric in metrics.values():
            metric.reset()

        def predict(batch: Any) -> Any:
            return how.forward(model.val_step, batch)

        evaluation: Any = PlainEvaluation(predict, metrics) if captured is None else captured
        if captured is not None:
            captured.begin(predict, metrics, {**dict(code.named_modules()), "": model}, watched=False)
        with torch.no_grad():
            for batch in batches:
                evaluation(batch)
        evaluation.end()
        found.append({name: dict(metric.state) for name, metric in metrics.items()})
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_and_metric(name: str, members: int, precision: str) -> None:
    torch.manual_seed(0)
    made, data = MODELS[name]
    models = [made().to(CUDA) for _ in range(members)]
    model = (models[0] if members == 1 else StackedModel(models)).eval()
    told: list[str] = []
    results = []
    for captured in (None, CapturedEvaluation(CudaGraph(CUDA), CUDA, told.append)):
        metrics: Any = {key: kind() for key, kind in METRICS.items()}
        metrics = metrics if members == 1 else stack_metrics(metrics, members)
        results.append(evaluated(captured, model, metrics, batches_of(data), precision=precision))
    assert told == []
    assert len(captured._captured) == 2
    same(results[1], results[0])


def test_no_replay_waits_and_memory_does_not_grow() -> None:
    model, data = MODELS["mlp"]
    model = model().to(CUDA).eval()
    captured = CapturedEvaluation(CudaGraph(CUDA), CUDA, print)
    metrics = {key: kind() for key, kind in METRICS.items()}
    batches = batches_of(data)
    evaluated(captured, model, metrics, batches, passes=WARM_UP + 2)
    torch.cuda.set_sync_debug_mode("error")
    sizes = []
    for _ in range(3):
        evaluated(captured, model, metrics, batches, passes=10)
        sizes.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert sizes[0] == sizes[1] == sizes[2]


def test_a_metric_that_waits_is_left_out() -> None:
    class Waiting(SumMetric):
        def sums(self, outputs: Any, target: Any) -> Any:
            return {"sum": outputs.sum() if outputs.max().item() > 0 else outputs.sum() * 2}

        def compute(self) -> Any:
            return self.total("sum")

    model, data = MODELS["mlp"]
    model = model().to(CUDA).eval()
    told: list[str] = []
    results = []
    for captured in (None, CapturedEvaluation(CudaGraph(CUDA), CUDA, told.append)):
        metrics = {"waiting": Waiting(), "loss": CrossEntropy()}
        results.append(evaluated(captured, model, metrics, batches_of(data), passes=6))
    same(results[1], results[0])
    (reason,) = told
    assert reason.startswith(
        "The evaluation is captured without metric.waiting: the code waits for the device (test_captured"
    )
    assert captured._captured


def test_a_run_has_the_results_of_one_with_plain_evaluations(parts: Any) -> None:
    """An average from the second epoch on, with the model evaluated beside it."""
    found = []
    for plain in (True, False):
        hooks = {"ema": EMA(0.9, begin=2, evaluate="both"), "logger": Logger()}
        more = {"device": "cuda", "hooks": hooks, "loop": EpochBasedTrainLoop(6)}
        runner = Runner(**parts | more)
        if plain:
            runner.evaluator.make_graph = None
        (metrics,) = runner.train()
        (tested,) = runner.test() if runner.has_split("test") else ({},)
        found.append({key: value for key, value in (metrics | tested).items() if "time" not in key})
    assert found[1] == found[0]


def test_points_of_a_stack_wait_for_nothing(tmp_path: Path) -> None:
    """Also while those of the last half second are read; the journals have every number."""
    for index in range(3):
        (tmp_path / str(index)).mkdir()
    journals, buffer = [Journal(tmp_path / str(index)) for index in range(3)], ScalarBuffer()
    for step in range(1, 1201):
        losses = {"loss": torch.arange(3, device=CUDA).float() + step, "scale": torch.full((), 0.5, device=CUDA)}
        torch.cuda.set_sync_debug_mode("error")
        buffer.add(journals, step, 0, losses, [0.1] * 3, {})
        torch.cuda.set_sync_debug_mode("default")
    buffer.flush()
    for index, journal in enumerate(journals):
        records = [record for record, _ in read(journal.path or "")]
        assert [record["values"]["train/loss"] for record in records] == [step + index for step in range(1, 1201)]
