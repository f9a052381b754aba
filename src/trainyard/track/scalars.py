"""Buffer of a training's scalars for the journals: numbers stay on the device until they are read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, KeysView, Mapping, Sequence
from itertools import chain
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from trainyard.track.journal import Journal

log = logging.getLogger(__name__)

MOST = 512
"""Maximum number of points that wait."""
SECONDS = 0.5
"""Seconds after the last reading from which on a new point causes the next."""

Number = float | list[float]
"""One number for all members, or one for each."""
_Waiting = tuple[int, int, float, Mapping[str, Tensor], Number, dict[str, Number]]
"""Step, epoch, time, losses, learning rate, gauges."""


class ScalarBuffer:
    """The buffer of one or more journals for the scalars of a training, which stay on the device while they wait.

    Adding a point takes a few µs, and nothing waits for the device. All points that wait are read with one
    synchronization, and written into each journal with one system call. That is done when a point comes half a second
    after the last reading, when 512 wait, and whenever a journal's `latest` is read or another record is written into
    it. So a journal is in order, and a checkpoint is never ahead of it.

    The thread that adds is the only one that reads; to others the numbers may be half a second old.
    """

    def __init__(self) -> None:
        self._journals: Sequence[Journal] = ()
        self._owner = 0
        self._read_at = 0.0
        self._waiting: list[_Waiting] = []
        self._kind = _Kind(())
        self._kinds: dict[tuple[str, ...], _Kind] = {}
        self._names: dict[tuple[str, ...], tuple[tuple[str, ...], list[int] | None]] = {}

    def add(
        self,
        journals: Sequence[Journal],
        step: int,
        epoch: int,
        losses: Mapping[str, Tensor],
        rates: list[float],
        gauges: Mapping[str, Callable[[], Number]],
    ) -> None:
        """Add a point at `step` for each of K journals; its values are recorded under their names, after `train/`.

        Args:
            journals: the same list as long as they are the same.
            losses: tensors `[]`, or `[K]`, on one device. The mapping is kept, not copied.
            rates: K learning rates, recorded as `lr`.
            gauges: further numbers; one takes the place of a loss of its name.
        """
        if journals is not self._journals:
            self._take_up(journals)
        kind = self._kind
        if kind.careful or losses.keys() != kind.names:
            losses = self._kept(losses)
        now = time.time()
        rate = rates[0] if len(rates) == 1 else rates
        self._waiting.append((step, epoch, now, losses, rate, {name: gauge() for name, gauge in gauges.items()}))
        if len(self._waiting) >= MOST or not 0 <= now - self._read_at < SECONDS:
            self.flush()

    def flush(self) -> None:
        """Read the points that wait and write them."""
        if not self._waiting or get_ident() != self._owner:
            return
        waiting, self._waiting = self._waiting, []
        self._read_at = time.time()
        numbers = _read([tensor for _, _, _, losses, _, _ in waiting for tensor in losses.values()])
        points: list[tuple[int, int, float, tuple[str, ...], list[Any]]] = []
        names: tuple[str, ...] = ()
        places: list[int] | None = None
        of_losses: KeysView[str] | None = None
        of_gauges: KeysView[str] | None = None
        end = 0
        for step, epoch, at, losses, rate, gauges in waiting:
            if losses.keys() != of_losses or gauges.keys() != of_gauges:
                of_losses, of_gauges = losses.keys(), gauges.keys()
                names, places = self._named((*losses, "lr", *gauges))
            begin, end = end, end + len(losses)
            values: list[Any] = numbers[begin:end]
            values.append(rate)
            values += gauges.values()
            points.append((step, epoch, at, names, values if places is None else [values[place] for place in places]))
        columns = [values for *_, values in points]
        if len(self._journals) == 1 and {*map(type, chain.from_iterable(columns))} == {float}:
            self._journals[0].points(points)
            return
        for index, journal in enumerate(self._journals):
            own = [[_own(value, index) for value in values] for values in columns]
            journal.points([(*point[:4], values) for point, values in zip(points, own, strict=True)])

    def salvage(self) -> None:
        """Read what can be read of a run that has failed: its device may not answer any more."""
        count = len(self._waiting)
        try:
            self.flush()
        except Exception as error:
            log.warning("The last %d points of the training are not in the journal: %s", count, error)

    def _take_up(self, journals: Sequence[Journal]) -> None:
        self.flush()
        self._journals, self._owner = journals, get_ident()
        for journal in journals:
            journal.buffer = self

    def _kept(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the losses of a point in a form that can wait."""
        names = tuple(losses)
        self._kind = self._kinds.setdefault(names, _Kind(names))
        if self._kind.new:
            self._read_at = 0.0
        return self._kind.kept(losses)

    def _named(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], list[int] | None]:
        """Return the recorded names, and the indices of their values; None: all."""
        if names not in self._names:
            last = {f"train/{name}": place for place, name in enumerate(names)}
            self._names[names] = tuple(last), None if len(last) == len(names) else list(last.values())
        return self._names[names]


class _Kind:
    """Kind of point: what the losses of the same names have in common.

    The tensors of a point wait as they are. That is correct unless their memory is overwritten, as for a model that
    returns a parameter (a learned temperature) with the losses. So the first two points of each kind are read at once,
    and what has the same address in both is copied from then on.

    Attributes:
        names: of the losses.
        new: the next point is one of the first two.
        careful: `new`, or something must be copied.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = dict.fromkeys(names).keys()
        self.new = self.careful = True
        self._first: tuple[list[Tensor], list[int]] | None = None
        self._copied: frozenset[str] = frozenset()

    def kept(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the losses, with copies of those that must be copied."""
        if self.new:
            self._look(losses)
        if not self._copied:
            return losses
        return {name: loss.detach().clone() if name in self._copied else loss for name, loss in losses.items()}

    def _look(self, losses: Mapping[str, Tensor]) -> None:
        tensors = [*losses.values()]
        places = [tensor.data_ptr() for tensor in tensors]
        if self._first is None:
            self._first = tensors, places  # the tensors too, so that their memory is not reused
            return
        before = zip(losses, tensors, places, self._first[1], strict=True)
        self._copied = frozenset(name for name, tensor, a, b in before if a == b or tensor.requires_grad)
        self.new, self._first = False, None
        self.careful = bool(self._copied)


def _own(value: Number, index: int) -> float:
    return float(value[index] if isinstance(value, list) else value)


def _read(tensors: list[Tensor]) -> list[Number]:
    """Return the numbers of tensors `[]` or `[K]`, with one synchronization."""
    if all(tensor.is_cpu for tensor in tensors):
        return [tensor.tolist() for tensor in tensors]
    return _read_stacked(tensors)


def _read_stacked(tensors: list[Tensor]) -> list[Number]:
    if len({(tensor.dtype, tensor.shape) for tensor in tensors}) > 1:
        count = max(tensor.numel() for tensor in tensors)
        tensors = [tensor.detach().reshape(-1).expand(count).to(torch.float64) for tensor in tensors]
    numbers: list[Number] = torch.stack(tensors).detach().to(torch.float64).tolist()
    return numbers
