"""Metrics. See docs/models.md."""

from trainyard.metrics.accuracy import Accuracy
from trainyard.metrics.confusion import ConfusionMatrix
from trainyard.metrics.language import BitsPerCharacter, Perplexity
from trainyard.metrics.loss import CrossEntropy
from trainyard.metrics.metric import Metric, SumMetric
from trainyard.metrics.regression import MeanAbsoluteError, MeanSquaredError
from trainyard.metrics.torchmetrics import TorchMetric, as_metric

__all__ = [
    "Accuracy",
    "BitsPerCharacter",
    "ConfusionMatrix",
    "CrossEntropy",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "Perplexity",
    "SumMetric",
    "TorchMetric",
    "as_metric",
]
