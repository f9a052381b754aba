"""Metrics (docs/models.md)."""

from trainyard.metrics.accuracy import Accuracy
from trainyard.metrics.confusion import ConfusionMatrix
from trainyard.metrics.function import FunctionMetric
from trainyard.metrics.given import as_metric, configured
from trainyard.metrics.language import BitsPerCharacter, Perplexity
from trainyard.metrics.logged import Logged
from trainyard.metrics.loss import CrossEntropy
from trainyard.metrics.metric import Metric, SumMetric
from trainyard.metrics.mmengine import MMEngineMetric
from trainyard.metrics.regression import MeanAbsoluteError, MeanSquaredError
from trainyard.metrics.results import results_of
from trainyard.metrics.torchmetrics import TorchMetric

__all__ = [
    "Accuracy",
    "BitsPerCharacter",
    "ConfusionMatrix",
    "CrossEntropy",
    "FunctionMetric",
    "Logged",
    "MMEngineMetric",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "Perplexity",
    "SumMetric",
    "TorchMetric",
    "as_metric",
    "configured",
    "results_of",
]
