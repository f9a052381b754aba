"""Windows of the Logger: the values that a logged mean includes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from trainyard.checks import is_integer, number
from trainyard.errors import ConfigError

Column = Sequence[tuple[int, Tensor]]
"""The values of one name: the epoch, from 0, and a tensor `[]`, or `[K]` for K members."""

EVERY = "*"
"""The name that stands for all other names."""


@dataclass(frozen=True)
class LogWindow:
    """Immutable window: the values that a mean includes so far.

    Attributes:
        tensors: each `[]` or `[K]`.
        count: the number of values summed in the tensors.
        epoch: the epoch of the values, from 0.
    """

    tensors: tuple[Tensor, ...] = ()
    count: int = 0
    epoch: int = 0

    def extended(self, column: Column) -> Self:
        """Return the window extended by these values."""
        raise NotImplementedError

    def mean(self) -> Tensor | None:
        """Return the mean, `[]` or `[K]`; None if the window is empty."""
        raise NotImplementedError

    def keep(self, members: list[int]) -> Self:
        """Return the window of these members only."""
        return replace(self, tensors=tuple(tensor[members] if tensor.ndim else tensor for tensor in self.tensors))

    def state_dict(self, member: int) -> dict[str, Any]:
        own = [tensor[member] if tensor.ndim else tensor for tensor in self.tensors]
        return {"kind": type(self).__name__, "tensors": own, "count": self.count, "epoch": self.epoch}

    def loaded(self, states: Sequence[dict[str, Any]], device: torch.device) -> Self:
        """Return the window restored from the states of its members; unchanged if these have another kind."""
        first = states[0]
        if first["kind"] != type(self).__name__:
            return self
        columns = zip(*(state["tensors"] for state in states), strict=True)
        tensors = [column[0] if len(states) == 1 else torch.stack(column) for column in columns]
        moved = tuple(tensor.to(device) for tensor in tensors)
        return replace(self, tensors=moved, count=first["count"], epoch=first["epoch"])


@dataclass(frozen=True)
class LastN(LogWindow):
    """Mean of the last `n` values."""

    n: int = 1

    def extended(self, column: Column) -> Self:
        return replace(self, tensors=(*self.tensors, *(value for _, value in column))[-self.n :])

    def mean(self) -> Tensor | None:
        return torch.stack(self.tensors).mean(0) if self.tensors else None


@dataclass(frozen=True)
class Since(LogWindow):
    """Mean of all values of the current epoch, or of the entire run (`whole`)."""

    whole: bool = False

    def extended(self, column: Column) -> Self:
        window = self
        for epoch, value in column:
            epoch = 0 if self.whole else epoch
            if window.tensors and window.epoch == epoch:
                window = replace(window, tensors=(window.tensors[0] + value.double(),), count=window.count + 1)
            else:
                window = replace(window, tensors=(value.double(),), count=1, epoch=epoch)
        return window

    def mean(self) -> Tensor | None:
        return self.tensors[0] / self.count if self.tensors else None


@dataclass(frozen=True)
class Smoothed(LogWindow):
    """Exponentially weighted mean with decay `decay` and bias correction, as for Adam's moments and in TensorBoard."""

    decay: float = 0.9

    def extended(self, column: Column) -> Self:
        window = self
        for _, value in column:
            before = window.tensors[0] if window.tensors else torch.zeros_like(value, dtype=torch.float64)
            window = replace(window, tensors=(before.lerp(value.double(), 1 - self.decay),), count=window.count + 1)
        return window

    def mean(self) -> Tensor | None:
        return self.tensors[0] / (1 - self.decay**self.count) if self.tensors else None


def window_kinds(window: Any, smoothing: Any) -> dict[str, LogWindow]:
    """Return the empty window of each name, from the Logger's `window` and `smoothing`.

    Raises:
        ConfigError: a value is invalid, or one name has both.
    """
    windows = {} if window is None else window if isinstance(window, Mapping) else {EVERY: window}
    smooth = {} if smoothing is None else smoothing if isinstance(smoothing, Mapping) else {EVERY: smoothing}
    for name in windows.keys() & smooth.keys():
        plain = name == EVERY
        accepted = "null, because `window` is set" if plain else f"no value for {name}, because `window` has one"
        raise ConfigError(_key("smoothing", name), smooth[name], accepted)
    return {name: _plain(_key("window", name), given) for name, given in windows.items()} | {
        name: _smoothed(_key("smoothing", name), given) for name, given in smooth.items()
    }


def _key(argument: str, name: str) -> str:
    return argument if name == EVERY else f"{argument}.{name}"


def _plain(key: str, given: Any) -> LogWindow:
    if is_integer(given, at_least=1):
        return LastN(n=int(given))
    if given not in ("epoch", "global"):
        others = _others(key)
        names = f"epoch, global, {others}" if others else "epoch or global"
        raise ConfigError(key, given, f"an integer of at least 1, {names}", options=("epoch", "global"))
    return Since(whole=given == "global")


def _smoothed(key: str, given: Any) -> LogWindow:
    return Smoothed(decay=number(key, given, above=0, below=1, other=_others(key)))


def _others(key: str) -> str:
    """Describe what an argument accepts instead of one value for all names; empty for the value of one name."""
    return "" if "." in key else "a mapping from names to such values, or null"
