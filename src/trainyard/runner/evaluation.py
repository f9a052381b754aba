"""Evaluation of batches: predictions, and the accumulation of metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from trainyard.config.compiling import compile_arguments
from trainyard.metrics import Metric
from trainyard.step.precision import Precision

if TYPE_CHECKING:
    from trainyard.runner.runner import Runner
    from trainyard.step.cuda_graph.captured_eval import CapturedEvaluation
    from trainyard.step.cuda_graph.graph import Graph

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """Function from a batch to a model's predictions, under the run's precision.

    Attributes:
        model: the model.
        split: "val" or "test".
        step: the model's own function.
        precision: the precision in which it runs.
    """

    model: nn.Module
    split: str
    step: Callable[[Any], Any]
    precision: Precision

    def __call__(self, batch: Any) -> Any:
        return self.precision.forward(self.step, batch)


class Evaluation(Protocol):
    """Interface of a pass over a set."""

    def __call__(self, batch: Any) -> Any:
        """Predict a batch and let the metrics process it; return the predictions if other code needs them."""

    def end(self) -> None:
        """End the pass: the metrics contain the accumulated values."""


class PlainEvaluation:
    """Evaluation by the model and the metrics, without a CUDA graph.

    Args:
        predict: the function from a batch to predictions.
        metrics: the metrics, by name.
    """

    def __init__(self, predict: Callable[[Any], Any], metrics: Mapping[str, Metric]) -> None:
        self._predict = predict
        self._metrics = [*metrics.values()]

    def __call__(self, batch: Any) -> Any:
        outputs = self._predict(batch)
        for metric in self._metrics:
            metric.process(batch, outputs)
        return outputs

    def end(self) -> None:
        """Do nothing: the metrics already contain the accumulated values."""


class Evaluator:
    """Evaluates sets for a Runner, as CUDA graphs if the run captures its steps.

    Graphs are kept between validations. An evaluator evaluates one set at a time.

    Args:
        runner: the Runner.
        make_graph: creates the object that captures and replays; None evaluates without graphs.
        told: messages that were already logged.
    """

    def __init__(self, runner: Runner, make_graph: Callable[[], Graph] | None, told: set[str] | None = None) -> None:
        self.make_graph = make_graph
        self._runner = runner
        self._told = set[str]() if told is None else told
        self._captured: dict[str, CapturedEvaluation] = {}

    @classmethod
    def of(cls, runner: Runner) -> Evaluator:
        """Return the evaluator for the settings of a run."""
        if runner.device.type != "cuda" or runner.settings["capture"] is False or runner.strategy.world_size > 1:
            return cls(runner, None)
        if compile_arguments(runner.settings["compile"]) is not None:
            log.info("The evaluation is not captured: the model is compiled.")
            return cls(runner, None)
        from trainyard.step.cuda_graph.graph import CudaGraph  # imported here because only CUDA needs it

        return cls(runner, lambda: CudaGraph(runner.device))

    def another(self) -> Evaluator:
        """Return an evaluator for sets that are evaluated at the same time as the sets of this evaluator."""
        return Evaluator(self._runner, self.make_graph, self._told)

    def begin(self, predict: Callable[[Any], Any], metrics: Mapping[str, Metric], *, watched: bool) -> Evaluation:
        """Begin a pass over a set, whose metrics have been reset.

        Args:
            predict: the function from a batch to predictions.
            metrics: the metrics, by name.
            watched: whether other code sees the predictions, or the metrics, between two batches.
        """
        if self.make_graph is None:
            return PlainEvaluation(predict, metrics)
        if not isinstance(predict, Prediction):
            self._tell("The evaluation is not captured: a loop or a hook replaces the prediction.")
            return PlainEvaluation(predict, metrics)
        if not getattr(predict.model, "capturable", True):
            return PlainEvaluation(predict, metrics)
        from trainyard.step.cuda_graph.captured_eval import CapturedEvaluation

        runner, model = self._runner, predict.model
        if predict.split not in self._captured:
            self._captured[predict.split] = CapturedEvaluation(self.make_graph(), runner.device, self._tell)
        captured = self._captured[predict.split]
        code: Any = model.code if runner.stacked else model  # a stacked model has the tensors, its template the code
        captured.begin(predict, metrics, {**dict(code.named_modules()), "": model}, watched=watched)
        return captured

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            log.info(message)
