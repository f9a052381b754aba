"""Conversion of metrics of other libraries."""

from __future__ import annotations

from typing import Any

from trainyard.errors import ConfigError
from trainyard.metrics.metric import Metric
from trainyard.metrics.mmengine import MMEngineMetric
from trainyard.metrics.torchmetrics import TorchMetric


def as_metric(given: Any) -> Metric:
    """Return a metric unchanged, or one of torchmetrics or with MMEngine's methods in its adapter.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(given, Metric):
        return given
    if not isinstance(given, type):
        if _has(given, "update", "compute", "reset"):
            return TorchMetric(given)
        if _has(given, "process", "compute_metrics"):
            return MMEngineMetric(given)
    accepted = (
        "a trainyard.metrics.Metric, or an object with update, compute and reset (torchmetrics) or with process and "
        "compute_metrics (MMEngine)"
    )
    raise ConfigError("metric", given, accepted)


def _has(given: Any, *methods: str) -> bool:
    return all(callable(getattr(given, name, None)) for name in methods)
