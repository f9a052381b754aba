"""Metrics of several members: those that accept a stack, and copies per member of the others."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainyard.data.transfer import apply
from trainyard.errors import TrainyardError
from trainyard.metrics import Metric
from trainyard.metrics.metric import Result


def stack_metrics(metrics: Mapping[str, Metric], members: int, *, stacked: bool = False) -> dict[str, Metric]:
    """Return copies of `metrics` for the outputs of K members at once, tensors `[K, ...]`; results are `[K, ...]` too.

    Args:
        metrics: name -> the metric of one run. They are not changed.
        members: K.
        stacked: whether each member has a batch of its own (`StackedLoader`); see `MemberMetrics`.
    """
    copies = {}
    for name, metric in metrics.items():
        if metric.stackable:
            copies[name] = copy.deepcopy(metric)
            copies[name].members = members
        else:
            copies[name] = MemberMetrics([copy.deepcopy(metric) for _ in range(members)], stacked=stacked)
    return copies


def keep_metrics(metrics: Mapping[str, Metric], index: Tensor) -> None:
    """Cut the result of `stack_metrics` to the members at `index`, int64; their accumulated state is kept."""
    for metric in metrics.values():
        if isinstance(metric, MemberMetrics):
            metric.keep(index)
        else:
            metric.members = len(index)
            metric.state = {key: held.index_select(0, index.to(held.device)) for key, held in metric.state.items()}


class MemberMetrics(Metric):
    """Copies, one per member, of a metric that does not accept stacked outputs.

    Its own `state` stays empty: the accumulated state is in the metrics of the members.

    Args:
        metrics: one for each member.
        stacked: whether the tensors of a batch have a leading axis of members; else all members share the batch. It can
            be set again for each loader.
    """

    def __init__(self, metrics: Sequence[Metric], *, stacked: bool = False) -> None:
        super().__init__(metrics[0].prefix)
        self.metrics = list(metrics)
        self.stacked = stacked
        self.members = len(self.metrics)

    def process(self, batch: Any, outputs: Any) -> None:
        """Update each member's metric with its part of the outputs: tensors `[K, ...]`, alone or nested."""
        for k, metric in enumerate(self.metrics):
            metric.process(_member(batch, k) if self.stacked else batch, _member(outputs, k))

    def compute(self) -> Result:
        """Return the members' results, stacked: a tensor `[K, ...]`, or several by name."""
        kind, results = type(self.metrics[0]).__name__, [metric.compute() for metric in self.metrics]
        named = [result for result in results if isinstance(result, dict)]
        if named:
            return {name: _stack(kind, [result[name] for result in named]) for name in named[0]}
        return _stack(kind, results)

    def reset(self) -> None:
        """Reset every member's metric."""
        for metric in self.metrics:
            metric.reset()

    def describe(self, metainfo: Any) -> None:
        """Describe the set to every member's metric."""
        for metric in self.metrics:
            metric.describe(metainfo)

    def merge(self, other: Metric) -> None:
        """Merge the metric of each member with that of the same member in the other object."""
        if not isinstance(other, MemberMetrics) or len(other.metrics) != len(self.metrics):
            raise TypeError(f"a {type(other).__name__} cannot be merged into a metric of {len(self.metrics)} members")
        for metric, more in zip(self.metrics, other.metrics, strict=True):
            metric.merge(more)

    def keep(self, index: Tensor) -> None:
        """Keep only the members at `index`, int64."""
        self.metrics = [self.metrics[k] for k in index.tolist()]
        self.members = len(self.metrics)


def _member(value: Any, k: int) -> Any:
    return apply(lambda leaf: leaf[k] if isinstance(leaf, Tensor) else leaf, value)


def _stack(kind: str, results: Sequence[Any]) -> Tensor:
    tensors = [torch.as_tensor(result) for result in results]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        given = " and ".join(str(list(shape)) for shape in sorted(shapes))
        raise TrainyardError(
            f"{kind}.compute() returns results of the shapes {given}. In a stack, all members must have results of the "
            "same shape."
        )
    return torch.stack(tensors)
