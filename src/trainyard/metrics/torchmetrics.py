"""Metrics of the torchmetrics library, used as they are: known by their methods, the library is not imported."""

from __future__ import annotations

from typing import Any

import torch

from trainyard.batch import target_of
from trainyard.errors import ConfigError
from trainyard.metrics.metric import Metric, Result


class TorchMetric(Metric):
    """Gives a `torchmetrics.Metric` (or `MetricCollection`) the metric contract.

    `process` calls `update(outputs, target)`. The wrapped metric keeps its own state, and where `torch.distributed` is
    initialised it gathers the ranks itself in `compute`: `state` stays empty, there is nothing for others to reduce.
    Not stackable.

    Args:
        metric: anything with `update`, `compute`, `reset` and `to`.
    """

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self.metric = metric
        self._device: torch.device | None = None

    def process(self, batch: Any, outputs: Any) -> None:
        """Updates the metric, moved first to the device of the outputs."""
        target = target_of(batch)
        device = getattr(outputs, "device", None)
        if device is not None:
            if device != self._device:
                self.metric.to(device)
                self._device = device
            if getattr(target, "device", device) != device:
                target = target.to(device)
        self.metric.update(outputs, target)

    def compute(self) -> Result:
        """What the metric computes."""
        result: Result = self.metric.compute()
        return result

    def reset(self) -> None:
        """Resets the metric."""
        self.metric.reset()

    def merge(self, other: Metric) -> None:
        """Merges the other metric's state by `torchmetrics.Metric.merge_state`."""
        if not isinstance(other, TorchMetric):
            raise TypeError(f"a {type(other).__name__} cannot be merged into a TorchMetric")
        self.metric.merge_state(other.metric)


def as_metric(given: Any) -> Metric:
    """A metric as it is, a torchmetrics one in its adapter.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(given, Metric):
        return given
    if not isinstance(given, type) and all(
        callable(getattr(given, name, None)) for name in ("update", "compute", "reset")
    ):
        return TorchMetric(given)
    raise ConfigError("metric", given, "a trainyard.metrics.Metric, or an object with update, compute and reset")
