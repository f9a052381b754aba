"""A metric over batches that several ranks took in turns (`trainyard.distributed.rank_loader.turns_of`)."""

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

from trainyard.batch import target_of
from trainyard.data.transfer import apply
from trainyard.errors import TrainyardError
from trainyard.metrics.metric import Metric, Result
from trainyard.metrics.torchmetrics import FOLDS, TorchMetric

Gather = Callable[[Any], list[Any]]


class RankMetric(Metric):
    """Gives each rank what one process would compute over all batches, to the bit.

    Floating-point sums depend on their order. So what each batch adds is kept by itself, and `compute` adds up the
    batches of all ranks in their own order, in which batch `i` of the evaluation was given to rank `i % world_size`.

    - A metric whose states are sums is kept as its sums; those of integers are added up at once.
    - One with a `merge` (or `add`, or `reset`) of its own is kept as a copy for each batch, merged in order. Its class
      has to be one that can be pickled.
    - So is one of torchmetrics whose states are sums, extremes and lists. Any other (Pearson's correlation, say) is
      kept as the outputs and targets themselves, with which every rank updates a copy.

    Its own `state` stays empty. A metric that keeps anything outside of `state` needs a `merge` that knows of it.

    Args:
        metric: of one process. It is not for other use any more.
        rank, world_size: this process, among how many.
        gather: returns what each rank gave, in their order. Default: by the default group of `torch.distributed`.
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

    def process(self, batch: Any, outputs: Any) -> None:
        """Keeps what a batch adds."""
        self._result = None
        self._kept.process(self._batches * self.world_size + self.rank, batch, outputs)
        self._batches += 1

    def compute(self) -> Result:
        """What the metric computes over the batches of all ranks; they all must call it. It may be called again."""
        if self._result is None:
            parts = [_unpacked(part) for part in self._gather(_packed(self._kept.parts()))]
            self._result = self._kept.compute(parts)
        return self._result

    def reset(self) -> None:
        """Forgets this rank's batches."""
        self._result = None
        self._batches = 0
        self._kept.reset()

    def merge(self, other: Metric) -> None:
        """Ranks meet in `compute`; there is nothing else to merge."""
        raise TypeError(f"a {type(other).__name__} cannot be merged into a RankMetric")


def gather_objects(value: Any) -> list[Any]:
    """What each rank of the default group gave, in their order; of a process alone, what it gave."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


class _Kept(ABC):
    """What is kept of batches, and how to compute from that of all ranks."""

    @abstractmethod
    def process(self, number: int, batch: Any, outputs: Any) -> None:
        """Keeps a batch, whose number in the evaluation is given."""

    @abstractmethod
    def parts(self) -> Any:
        """What to send to all ranks; nothing in it shares memory with what is not sent."""

    @abstractmethod
    def compute(self, ranks: Sequence[Any]) -> Result:
        """The result, from the parts of each rank."""

    @abstractmethod
    def reset(self) -> None:
        """Forgets all."""


class _Sums(_Kept):
    """The sums that each batch adds."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.reset()

    def reset(self) -> None:
        self.exact = self._empty()
        self.rounded: dict[str, list[tuple[int, Tensor]]] = {}

    def _empty(self) -> Metric:
        """The metric as it is, without what it has gathered."""
        empty = copy.copy(self.metric)
        empty.state = {}
        return empty

    def process(self, number: int, batch: Any, outputs: Any) -> None:
        self.metric.state = {}
        self.metric.process(batch, outputs)
        if not self.metric.state:
            kind = type(self.metric).__name__
            raise TrainyardError(
                f"{kind} keeps nothing in its `state`, and has no `merge`: it cannot be computed over several devices."
            )
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
        return exact, rounded

    def compute(self, ranks: Sequence[Any]) -> Result:
        whole = self._empty()
        values: list[tuple[int, str, Tensor]] = []
        for exact, rounded in ranks:
            whole.add(exact)
            for key, (shapes, flat) in rounded.items():
                split = flat.split([shape.numel() for _, shape in shapes])
                values += [(number, key, part.view(shape)) for (number, shape), part in zip(shapes, split, strict=True)]
        for _, key, value in sorted(values, key=lambda entry: entry[0]):
            whole.add({key: value})
        return whole.compute()


class _Copies(_Kept):
    """A copy of the metric for each batch; for all of them where none of its states is rounded."""

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
        for module in _torch_metrics(whole):  # its states have come to this rank's device, and it does not know
            module.to(torch.device(module.device.type))
        for metric in metrics[1:]:
            whole.merge(metric)
        return whole.compute()


class _Inputs(_Kept):
    """The outputs and targets themselves."""

    def __init__(self, metric: Metric) -> None:
        self.blank = _blank(metric)
        self.reset()

    def reset(self) -> None:
        self.inputs: list[tuple[int, Any, Any]] = []

    def process(self, number: int, batch: Any, outputs: Any) -> None:
        self.inputs.append((number, target_of(batch), outputs))

    def parts(self) -> Any:
        return [(number, _own(target), _own(outputs)) for number, target, outputs in self.inputs]

    def compute(self, ranks: Sequence[Any]) -> Result:
        whole = copy.deepcopy(self.blank)
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
    """A copy without what it has gathered, which leaves the ranks to us."""
    blank = copy.deepcopy(metric)
    blank.reset()
    for module in _torch_metrics(blank):
        module.sync_on_compute = module._to_sync = False
    return blank


def _torch_metrics(metric: Metric) -> list[Any]:
    """The metrics of torchmetrics that there are in one."""
    inner = metric.metric if isinstance(metric, TorchMetric) else None
    modules = inner.modules() if isinstance(inner, nn.Module) else ()
    return [module for module in modules if hasattr(module, "_reductions")]


def _states(metric: Metric) -> list[tuple[Any, str, Any]]:
    """The states of a metric of torchmetrics: whose, their names, and what reduces them."""
    return [
        (module, name, reduction) for module in _torch_metrics(metric) for name, reduction in module._reductions.items()
    ]


def _merges_exactly(metric: TorchMetric) -> bool:
    """Whether batches that were gathered one by one merge, in order, to what one process has."""
    states = _states(metric)
    return bool(states) and all(
        isinstance(getattr(module, name), list) or getattr(reduction, "__name__", "") in FOLDS
        for module, name, reduction in states
    )


def _is_exact(metric: Metric) -> bool:
    """Whether it is a metric of torchmetrics all of whose states are tensors of whole numbers."""
    values = [getattr(module, name) for module, name, _ in _states(metric)]
    return bool(values) and all(isinstance(value, Tensor) and not value.is_floating_point() for value in values)


def _own(value: Any) -> Any:
    """The value with memory of its own: of a view all that it looks at would be sent."""
    return apply(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, value)


def _packed(parts: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(parts, buffer)
    return buffer.getvalue()


def _unpacked(packed: bytes) -> Any:
    """What a rank has sent; its tensors are on this rank's device of the same kind."""

    def move(storage: Any, location: str) -> Any:
        return default_restore_location(storage, location.partition(":")[0])  # type: ignore[no-untyped-call]

    return torch.load(io.BytesIO(packed), map_location=move, weights_only=False)
