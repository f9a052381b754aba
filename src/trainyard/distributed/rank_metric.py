"""Metric over batches that are distributed over several ranks (`trainyard.distributed.rank_loader.turns_of`)."""

from __future__ import annotations

import copy
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.serialization import default_restore_location

from trainyard.data.transfer import apply
from trainyard.errors import TrainyardError
from trainyard.metrics.metric import Metric, Result
from trainyard.metrics.torchmetrics import FOLDS, TorchMetric

Gather = Callable[[Any], list[Any]]


class RankMetric(Metric):
    """Computes on each rank the same bits that a single process would compute over all batches.

    Floating-point sums depend on their order. Therefore, the contribution of each batch is kept separately, and
    `compute` adds up the batches of all ranks in their order; batch `i` of the evaluation was on rank `i % world_size`.

    - A metric whose states are sums is kept as its sums; sums of integers are added immediately.
    - A metric with a custom `merge` (or `add`, or `reset`) is kept as a copy for each batch, and the copies are merged
      in order. Its class must be picklable.
    - The same applies to a metric of torchmetrics whose states are sums, extremes and lists. For other metrics (such as
      Pearson's correlation), the outputs and targets are kept, with which every rank updates a copy.

    Its own `state` stays empty. A metric that keeps data outside `state` needs a `merge` that handles them.

    Args:
        metric: metric of one process. Do not use it elsewhere afterwards.
        rank, world_size: the rank of this process, and the number of processes.
        gather: returns the values of all ranks, in order. Default: over the default group of `torch.distributed`.
    """

    def __init__(self, metric: Metric, rank: int, world_size: int, gather: Gather | None = None) -> None:
        super().__init__()
        self.metric = metric
        self.prefix = metric.prefix
        self.rank = rank
        self.world_size = world_size
        self._gather = gather or gather_objects
        self._kept = _kept(metric)
        self._batches = 0
        self._result: Result | None = None

    def describe(self, metainfo: Any) -> None:
        """Describe the set to the metric."""
        self.metric.describe(metainfo)

    def process(self, batch: Any, outputs: Any) -> None:
        """Keep the contribution of a batch."""
        self._result = None
        self._kept.process(self._batches * self.world_size + self.rank, batch, outputs)
        self._batches += 1

    def compute(self) -> Result:
        """Return the metric over the batches of all ranks; all ranks must call this method. It can be called
        repeatedly."""
        if self._result is None:
            parts = [_unpacked(part) for part in self._gather(_packed(self._kept.parts()))]
            self._result = self._kept.compute(parts)
        return self._result

    def reset(self) -> None:
        """Forget this rank's batches."""
        self._result = None
        self._batches = 0
        self._kept.reset()

    def merge(self, other: Metric) -> None:
        """Raise `TypeError`: only `compute` combines the ranks."""
        raise TypeError(f"a {type(other).__name__} cannot be merged into a RankMetric")


def gather_objects(value: Any) -> list[Any]:
    """Return the value of each rank of the default group, in order; a single process gets its own value."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


class _Kept(ABC):
    """Kept contributions of batches, and the computation from those of all ranks."""

    @abstractmethod
    def process(self, number: int, batch: Any, outputs: Any) -> None:
        """Keep a batch, whose number in the evaluation is given."""

    @abstractmethod
    def parts(self) -> Any:
        """Return what to send to all ranks; it shares no memory with anything else."""

    @abstractmethod
    def compute(self, ranks: Sequence[Any]) -> Result:
        """Return the result from the parts of each rank."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything kept."""


class _Sums(_Kept):
    """Sums that each batch adds."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.reset()

    def reset(self) -> None:
        self.exact = self._empty()
        self.rounded: dict[str, list[tuple[int, Tensor]]] = {}
        self.begun = False

    def _empty(self) -> Metric:
        """Return a copy of the metric without its accumulated state."""
        empty = copy.copy(self.metric)
        empty.state = {}
        return empty

    def process(self, number: int, batch: Any, outputs: Any) -> None:
        self.metric.state = {}
        self.metric.process(batch, outputs)
        self.begun = True
        for key, value in self.metric.state.items():
            if value.is_floating_point() or value.is_complex():
                self.rounded.setdefault(key, []).append((number, value.detach()))
            else:
                self.exact.add({key: value})
        self.metric.state = {}

    def parts(self) -> Any:
        exact = {key: value.clone() for key, value in self.exact.state.items()}
        rounded = {}
        for key, values in self.rounded.items():
            shapes = [(number, value.shape) for number, value in values]
            rounded[key] = shapes, torch.cat([value.reshape(-1) for _, value in values])
        return exact, rounded, self.begun

    def compute(self, ranks: Sequence[Any]) -> Result:
        if not any(exact or rounded for exact, rounded, _ in ranks) and any(begun for *_, begun in ranks):
            kind = type(self.metric).__name__
            raise TrainyardError(
                f"{kind} has an empty `state` and no `merge`, so it cannot be computed on several devices. "
                "Accumulate its sums with `self.add({...})` in `process`, or define `merge`."
            )
        whole = self._empty()
        values: list[tuple[int, str, Tensor]] = []
        for exact, rounded, _ in ranks:
            whole.add(exact)
            for key, (shapes, flat) in rounded.items():
                split = flat.split([shape.numel() for _, shape in shapes])
                values += [(number, key, part.view(shape)) for (number, shape), part in zip(shapes, split, strict=True)]
        for _, key, value in sorted(values, key=lambda entry: entry[0]):
            whole.add({key: value})
        return whole.compute()


class _Copies(_Kept):
    """Copy of the metric for each batch, or one for all batches if none of its states is rounded."""

    def __init__(self, metric: Metric) -> None:
        self.blank = _blank(metric)
        self.reset()

    def reset(self) -> None:
        self.copies: list[tuple[int, Metric]] = []

    def process(self, number: int, batch: Any, outputs: Any) -> None:
        if not self.copies or not _is_exact(self.copies[-1][1]):
            self.copies.append((number, copy.deepcopy(self.blank)))
        self.copies[-1][1].process(batch, outputs)

    def parts(self) -> Any:
        for _, metric in self.copies:
            for module, name, _ in _states(metric):
                state = getattr(module, name)
                if isinstance(state, list):
                    setattr(module, name, [_own(entry) for entry in state])
        return self.copies

    def compute(self, ranks: Sequence[Any]) -> Result:
        metrics = [
            metric for _, metric in sorted((part for parts in ranks for part in parts), key=lambda part: part[0])
        ]
        whole = metrics[0] if metrics else copy.deepcopy(self.blank)
        for module in _torch_metrics(whole):  # its states were moved to this rank's device, but it does not know
            module.to(torch.device(module.device.type))
        for metric in metrics[1:]:
            whole.merge(metric)
        return whole.compute()


class _Inputs(_Kept):
    """Outputs and targets themselves."""

    def __init__(self, metric: Metric) -> None:
        self.blank = _blank(metric)
        self.reset()

    def reset(self) -> None:
        self.inputs: list[tuple[int, Any, Any]] = []

    def process(self, number: int, batch: Any, outputs: Any) -> None:
        outputs, target = self.blank.read(batch, outputs)
        self.inputs.append((number, target, outputs))

    def parts(self) -> Any:
        return [(number, _own(target), _own(outputs)) for number, target, outputs in self.inputs]

    def compute(self, ranks: Sequence[Any]) -> Result:
        whole = copy.deepcopy(self.blank)
        whole.output = whole.target = None  # what is kept is selected already
        for _, target, outputs in sorted((part for parts in ranks for part in parts), key=lambda part: part[0]):
            whole.process((None, target), outputs)
        return whole.compute()


def _kept(metric: Metric) -> _Kept:
    if isinstance(metric, TorchMetric):
        return _Copies(metric) if _merges_exactly(metric) else _Inputs(metric)
    kind = type(metric)
    plain = kind.merge is Metric.merge and kind.add is Metric.add and kind.reset is Metric.reset
    return _Sums(metric) if plain else _Copies(metric)


def _blank(metric: Metric) -> Metric:
    """Return a copy without its accumulated state, which does not communicate between ranks."""
    blank = copy.deepcopy(metric)
    blank.reset()
    for module in _torch_metrics(blank):
        module.sync_on_compute = module._to_sync = False
    return blank


def _torch_metrics(metric: Metric) -> list[Any]:
    """Return the torchmetrics metrics within a metric."""
    inner = metric.metric if isinstance(metric, TorchMetric) else None
    modules = inner.modules() if isinstance(inner, nn.Module) else ()
    return [module for module in modules if hasattr(module, "_reductions")]


def _states(metric: Metric) -> list[tuple[Any, str, Any]]:
    """Return the states of a torchmetrics metric: owner, name and reduction."""
    return [
        (module, name, reduction) for module in _torch_metrics(metric) for name, reduction in module._reductions.items()
    ]


def _merges_exactly(metric: TorchMetric) -> bool:
    """Return whether batches that were added one by one merge, in order, to the state of a single process."""
    states = _states(metric)
    return bool(states) and all(
        isinstance(getattr(module, name), list) or getattr(reduction, "__name__", "") in FOLDS
        for module, name, reduction in states
    )


def _is_exact(metric: Metric) -> bool:
    """Return whether this is a metric of torchmetrics whose states are all integer tensors."""
    values = [getattr(module, name) for module, name, _ in _states(metric)]
    return bool(values) and all(isinstance(value, Tensor) and not value.is_floating_point() for value in values)


def _own(value: Any) -> Any:
    """Return a copy of the value with its own memory, because the complete storage of a view would be sent."""
    return apply(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, value)


def _packed(parts: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(parts, buffer)
    return buffer.getvalue()


def _unpacked(packed: bytes) -> Any:
    """Return the received value of a rank; its tensors are on this rank's device of the same kind."""

    def move(storage: Any, location: str) -> Any:
        return default_restore_location(storage, location.partition(":")[0])  # type: ignore[no-untyped-call]

    return torch.load(io.BytesIO(packed), map_location=move, weights_only=False)
