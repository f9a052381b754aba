"""Metric contract, and the base class of metrics whose state is a sum over samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from trainyard.batch import aligned, target_of
from trainyard.errors import ConfigError, TrainyardError
from trainyard.metrics.selection import described, select

Result = Tensor | dict[str, Tensor]

NOTHING = nullcontext()


class Metric(ABC):
    """Base class of metrics, which are accumulated batch by batch over a split.

    A subclass implements `process` and `compute`. It stores sums over samples in `state`, so that batches of any size
    have the correct weight, and the states of two ranks are merged by addition. `state` is empty at first and is on the
    device of the first sums; `process` must not synchronize with the device (`.item()`, `if tensor`).

    Args:
        prefix: the results are named `<prefix>/<name>`, so that their names differ from the names of another metric.

    Attributes:
        state: name -> sum. Empty before the first batch.
        stackable: whether `process` supports the stacked outputs of K members, `[K, ...]`. If False, each member of a
            stack has its own metric.
        capturable: whether `process` only calls `add` with sums of tensors that are a function of the batch, the
            outputs and the metric's settings. If True, it runs within a CUDA graph; other metrics are processed after
            the graph.
        selects: whether `process` calls `read` for the outputs and the target, so that a config can select them.
        output, target: the paths of the values that `read` returns, in the outputs and in the batch; None: the complete
            output, and the target of the batch.
        name: the name of the metric in the config, for messages.
        members: K if the outputs have a leading axis of K members, otherwise None. The caller that passes stacked
            outputs to a stackable metric sets it.
    """

    stackable: bool = False
    capturable: bool = False
    selects: bool = False
    output: str | None = None
    target: str | None = None
    name: str | None = None
    members: int | None = None
    prefix: str | None = None

    def __init__(self, prefix: str | None = None) -> None:
        if prefix is not None:
            if not isinstance(prefix, str) or not prefix or prefix != prefix.strip("/ "):
                accepted = "a non-empty string without a slash or space at its start or end, such as coarse"
                raise ConfigError("prefix", prefix, accepted)
            self.prefix = prefix
        self.state: dict[str, Tensor] = {}

    @abstractmethod
    def process(self, batch: Any, outputs: Any) -> None:
        """Add a batch and the predictions for it to the state."""

    def read(self, batch: Any, outputs: Any) -> tuple[Any, Any]:
        """Return the outputs and the target that `output` and `target` select.

        Raises:
            TrainyardError: the output or the target does not exist.
        """
        target = target_of(batch) if self.target is None else select(batch, self.target, "batch", self._key("target"))
        return self._selected(outputs), target

    def _selected(self, outputs: Any) -> Any:
        """Return the outputs that `output` selects.

        Raises:
            TrainyardError: the output does not exist.
        """
        return outputs if self.output is None else select(outputs, self.output, "outputs", self._key("output"))

    def _key(self, argument: str) -> str:
        return "" if self.name is None else f"metric.{self.name}.{argument}"

    def refusal(self, outputs: Any, target: Any, wanted: str) -> TrainyardError:
        """Return the error for outputs and a target that the metric cannot read."""
        hint = ""
        if self.selects and not isinstance(outputs, Tensor) and isinstance(outputs, Mapping | list | tuple):
            entries = list(outputs.items() if isinstance(outputs, Mapping) else enumerate(outputs))
            first = next((name for name, entry in entries if isinstance(entry, Tensor)), None)
            if first is not None:
                key = f"metric.{self.name or 'NAME'}.output"
                override = f"+{key}={first}" if self.output is None else f"{key}={self.output}.{first}"
                hint = f" {override} selects one of the outputs."
        title = getattr(self, "title", type(self).__name__)
        given = f"the outputs are {described(outputs)} and the target is {described(target)}"
        return TrainyardError(f"{title}: {given}, but the metric needs {wanted}.{hint}")

    @abstractmethod
    def compute(self) -> Result:
        """Return the result: a scalar, `[K]` for K members, an array per member, or a mapping of these."""

    def reset(self) -> None:
        """Reset to the state before the first batch."""
        self.state = {}

    def describe(self, metainfo: Any) -> None:  # noqa: B027 - few metrics read it
        """Receive the `metainfo` of the data set that is evaluated next, if it has a `metainfo`."""

    def merge(self, other: Metric) -> None:
        """Add the state of another metric of the same kind, on any device."""
        if type(other) is not type(self):
            raise TypeError(f"{type(other).__name__} cannot be merged into {type(self).__name__}")
        self.add(other.state)

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add `sums` to the state, entry by entry."""
        for key, value in sums.items():
            held = self.state.get(key)
            if held is None:
                self.state[key] = value
            elif held.shape != value.shape:
                raise TrainyardError(
                    f"{type(self).__name__}: {key} has the shape {list(held.shape)} so far and {list(value.shape)} in "
                    "this batch. The shape must be the same for all batches: sum over the samples, and keep the number "
                    "of classes. If outputs have a leading axis of members, set `members`."
                )
            else:
                self.state[key] = held + (value if value.device == held.device else value.to(held.device))

    def total(self, key: str) -> Tensor:
        """Return the entry of the state under `key`.

        Raises:
            TrainyardError: no batch was processed.
        """
        if key not in self.state:
            raise TrainyardError(f"{type(self).__name__} cannot be computed, because no batch was processed.")
        return self.state[key]


class SumMetric(Metric):
    """Base class of metrics computed from sums, a pure function of one member's outputs and target.

    A subclass implements `sums` and `compute`. For the outputs of K members, `[K, ...]`, `torch.vmap` calls `sums` for
    each member, so a subclass can ignore members. The target is `[K, B]`, or `[B]` if all members share it. If `vmap`
    is too slow, the subclass also implements `stacked_sums`.
    """

    stackable = True
    capturable = True
    selects = True
    class_axis: ClassVar[bool] = True
    """Whether outputs have one more axis than the target: the last one, for the classes."""

    @abstractmethod
    def sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return sums over a batch: outputs `[B, ..., C]`, target `[B, ...]` (without a class axis: same shape)."""

    def stacked_sums(self, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return sums `[K, ...]` of K members: outputs `[K, B, ..., C]`, target `[K, B, ...]` or `[B, ...]`."""
        shared = target.ndim == outputs.ndim - self.class_axis - 1
        sums: dict[str, Tensor] = torch.vmap(self.sums, in_dims=(0, None if shared else 0))(outputs, target)
        return sums

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Drop inherited attributes that do not apply to the methods of a class: `stacked_sums`, `capturable`."""
        super().__init_subclass__(**kwargs)
        if {"process", "add"} & vars(cls).keys() and "capturable" not in vars(cls):
            cls.capturable = False
        if "process" in vars(cls) and "selects" not in vars(cls):
            cls.selects = False
        if "sums" in vars(cls) and "stacked_sums" not in vars(cls):
            setattr(cls, "stacked_sums", SumMetric.stacked_sums)  # noqa: B010 (a type checker refuses to assign it)

    def process(self, batch: Any, outputs: Any) -> None:
        """Add the sums over a batch; `read` returns the outputs and the target."""
        outputs, target = self.read(batch, outputs)
        if not isinstance(outputs, Tensor) or not isinstance(target, Tensor):
            raise self.refusal(outputs, target, "two tensors")
        if not self.class_axis:
            target = self._aligned(target, outputs)
        shape = outputs.shape[:-1] if self.class_axis else outputs.shape
        shared = target.ndim == len(shape) - 1
        if target.shape != (shape[1:] if shared else shape) or (
            self.members is not None and outputs.shape[:1] != (self.members,)
        ):
            raise self._mismatch(outputs, target)
        if target.device != outputs.device:
            target = target.to(outputs.device)
        with torch.no_grad() if torch.is_grad_enabled() else NOTHING:  # off in loops already, and entering costs
            stacked = shared or self.members is not None
            self.add(self.stacked_sums(outputs, target) if stacked else self.sums(outputs, target))

    def _aligned(self, target: Tensor, outputs: Tensor) -> Tensor:
        """Return numbers `[B]` as `[B, 1]`, or vice versa, to match the outputs of a member."""
        if target.shape in (outputs.shape, outputs.shape[1:]) and self.members is not None:
            return target
        found: Tensor = aligned(target, outputs)
        if found is target and self.members is not None:
            found = aligned(target, outputs[0])
        return found

    def _mismatch(self, outputs: Tensor, target: Tensor) -> TrainyardError:
        wanted = "[B, ..., C] and [B, ...], the classes last" if self.class_axis else "of the same shape"
        numbers = target.is_floating_point()
        advice = " For regression targets, use metric=regression." if numbers and self.class_axis else ""
        advice = " For classes, use metric=classification." if not (numbers or self.class_axis) else advice
        members = "" if self.members is None else f", after a leading axis of {self.members} members"
        return TrainyardError(
            f"{type(self).__name__}: outputs {list(outputs.shape)} do not match the target {list(target.shape)}; "
            f"they must be {wanted}{members}.{advice}"
        )
