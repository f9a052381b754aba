"""Adapter for metrics of torchmetrics. They are recognized by their methods; the library is not imported."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainyard.batch import aligned, to_device
from trainyard.errors import TrainyardError
from trainyard.metrics.metric import Metric, Result

FOLDS = ("dim_zero_sum", "dim_zero_max", "dim_zero_min")
"""Reductions of torchmetrics that can be done pairwise."""


class TorchMetric(Metric):
    """Adapter for a `torchmetrics.Metric` or `MetricCollection`.

    `process` calls `update(outputs, target)` with tensors or, for detection, lists of dicts of tensors. The wrapped
    metric has its own state. If `torch.distributed` is initialized, `compute` of the wrapped metric reduces over the
    ranks: `state` stays empty, and the caller does not reduce. The metric is not stackable.

    Args:
        metric: an object with `update`, `compute`, `reset` and `to`.
        prefix: see `Metric`.
    """

    selects = True

    def __init__(self, metric: Any, prefix: str | None = None) -> None:
        super().__init__(prefix)
        self.metric = metric
        self.title = type(metric).__name__
        self._merged: list[Any] = []
        self._device: torch.device | None = None

    def process(self, batch: Any, outputs: Any) -> None:
        """Update the metric, after moving it to the device of the outputs.

        Raises:
            TrainyardError: the metric rejects the outputs or the target.
        """
        outputs, target = self.read(batch, outputs)
        target = aligned(target, outputs)
        device = _device_of(outputs)
        if device is not None:
            if device != self._device:
                self.metric.to(device)
                self._device = device
            if _device_of(target) not in (None, device):
                target = to_device(target, device)
        try:
            self.metric.update(outputs, target)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError) as error:
            if isinstance(error, AttributeError) and isinstance(outputs, Tensor) and isinstance(target, Tensor):
                raise  # a fault of the metric
            raise self.refusal(outputs, target, f"other shapes, types or values: {error!s}".rstrip(".")) from error

    def compute(self) -> Result:
        """Compute the metric's results."""
        whole = _reduced([self.metric, *self._merged]) if self._merged else self.metric
        result: Result = whole.compute()
        return result

    def reset(self) -> None:
        """Reset the metric."""
        self.metric.reset()
        self._merged = []

    def merge(self, other: Metric) -> None:
        """Copy the other metric, so that `compute` can reduce all metrics in one step, as torchmetrics does with ranks.

        `torchmetrics.Metric.merge_state` merges pairwise, which is wrong for states that are means. It also rejects
        metrics that do not declare support for it.
        """
        if not isinstance(other, TorchMetric) or type(other.metric) is not type(self.metric):
            kind = type(getattr(other, "metric", other)).__name__
            raise TypeError(f"{kind} cannot be merged into {type(self.metric).__name__}")
        if not isinstance(self.metric, nn.Module):  # an object with the same methods
            if not hasattr(self.metric, "merge_state"):
                kind = type(self.metric).__name__
                raise TrainyardError(
                    f"{kind} is not a torchmetrics metric and has no merge_state, so it cannot be merged. "
                    "Define merge_state."
                )
            self.metric.merge_state(other.metric)
            return
        self._merged += [copy.deepcopy(part) for part in (other.metric, *other._merged)]


def _device_of(value: Any) -> torch.device | None:
    """Return the device of the first tensor in a nest of lists and mappings."""
    if isinstance(value, Mapping):
        value = [*value.values()]
    if isinstance(value, list | tuple):
        return next((device for entry in value if (device := _device_of(entry)) is not None), None)
    return value.device if isinstance(value, torch.Tensor) else None


def _reduced(parts: Sequence[Any]) -> Any:
    """Merge metrics into one, with states reduced as `torchmetrics.Metric._sync_dist` does; the parts stay unchanged.

    Parts that were never updated are omitted.
    """
    whole = copy.deepcopy(parts[0])
    for own, *modules in zip(whole.modules(), *(part.modules() for part in parts), strict=True):
        updated = [module for module in modules if getattr(module, "update_count", 0)]
        for name, reduction in getattr(own, "_reductions", {}).items() if updated else ():
            states = [getattr(module, name) for module in updated]
            if isinstance(states[0], list):
                setattr(own, name, [entry.to(own.device) for state in states for entry in state])
            else:
                states = [state.to(own.device) for state in states]
                setattr(own, name, _reduced_state(states, reduction))
        if updated:
            own._update_count = sum(module.update_count for module in updated)
            own._computed = None
    return whole


def _reduced_state(states: Sequence[torch.Tensor], reduction: Any) -> torch.Tensor:
    if getattr(reduction, "__name__", "") in FOLDS:  # one by one, as a single process adds its batches
        return functools.reduce(lambda one, other: cast(torch.Tensor, reduction(torch.stack([one, other]))), states)
    stacked = torch.stack(list(states))
    return stacked if reduction is None else cast(torch.Tensor, reduction(stacked))
