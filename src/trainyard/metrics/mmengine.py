"""Adapter for MMEngine metrics. They are recognized by their methods; the library is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainyard.data.transfer import apply
from trainyard.errors import TrainyardError
from trainyard.metrics.metric import Metric


class MMEngineMetric(Metric):
    """Adapter for a metric with MMEngine's two methods.

    `process(data_batch, data_samples)` appends values from a batch and its predictions to `self.results`.
    `compute_metrics(results)` computes a dict of numbers (or arrays) from all results, on the CPU. A class with these
    two methods is sufficient, for example a class that derives from `mmengine.evaluator.BaseMetric`. The adapter stores
    `results` and collects them across ranks. If the data set has a `metainfo`, it is the metric's `dataset_meta`. The
    metric is not stackable.

    Args:
        metric: an object with `process` and `compute_metrics`.
        prefix: see `Metric`; None: the metric's own prefix, if it has one.

    Example:
        >>> class Count:
        ...     def process(self, data_batch, data_samples):
        ...         self.results.append(len(data_samples))
        ...     def compute_metrics(self, results):
        ...         return {"count": sum(results)}
        >>> metric = MMEngineMetric(Count())
        >>> metric.process((torch.zeros(3), torch.zeros(3)), torch.zeros(3))
        >>> metric.process((torch.zeros(2), torch.zeros(2)), torch.zeros(2))
        >>> metric.compute()
        {'count': tensor(5)}
    """

    selects = True

    def __init__(self, metric: Any, prefix: str | None = None) -> None:
        super().__init__(prefix or getattr(metric, "prefix", None) or None)
        self.metric = metric
        self.reset()

    def process(self, batch: Any, outputs: Any) -> None:
        """Pass a batch and its predictions to the metric; MMEngine's data elements are passed as dicts."""
        outputs = self._selected(outputs)
        if isinstance(outputs, tuple | list):
            outputs = [sample.to_dict() if hasattr(sample, "to_dict") else sample for sample in outputs]
        self.metric.process(batch, outputs)

    def compute(self) -> dict[str, Tensor]:
        """Return the metric's results over all batches.

        Raises:
            TrainyardError: the results are not a dict of numbers and arrays.
        """
        found = self.metric.compute_metrics(apply(lambda leaf: leaf.cpu(), self.metric.results))
        if not isinstance(found, Mapping):
            raise self._wrong(f"returned a value of type {type(found).__name__}")
        return {str(name): self._tensor(name, value) for name, value in found.items()}

    def reset(self) -> None:
        """Clear the results."""
        self.metric.results = []

    def describe(self, metainfo: Any) -> None:
        """Set the metric's `dataset_meta` to the `metainfo` of the set."""
        self.metric.dataset_meta = metainfo

    def merge(self, other: Metric) -> None:
        """Append the results of another metric."""
        if not isinstance(other, MMEngineMetric) or type(other.metric) is not type(self.metric):
            kind = type(getattr(other, "metric", other)).__name__
            raise TypeError(f"{kind} cannot be merged into {type(self.metric).__name__}")
        self.metric.results = [*self.metric.results, *other.metric.results]

    def _tensor(self, name: Any, value: Any) -> Tensor:
        try:
            return torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
        except (TypeError, ValueError, RuntimeError):
            raise self._wrong(f"returned a value of type {type(value).__name__} under {str(name)!r}") from None

    def _wrong(self, what: str) -> TrainyardError:
        kind = type(self.metric).__name__
        return TrainyardError(f"{kind}.compute_metrics {what}; it must return a dict of numbers and arrays.")
