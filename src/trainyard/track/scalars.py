"""Buffer of a training's scalars for the journals: numbers stay on the device until they are read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, KeysView, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import chain, groupby
from operator import itemgetter
from threading import get_ident
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainyard.track.journal import Journal
from trainyard.track.stacked_points import StackedPoints

log = logging.getLogger(__name__)

MOST = 512
"""Maximum number of pending points."""
SECONDS = 0.5
"""Number of seconds after the last reading from which a new point causes the next reading."""

Number = float | list[float]
"""One number for all members, or one number for each."""
Place = int | list[int]
"""A step or an epoch: one number for all members, or one number for each."""
_Waiting = tuple[Place, Place, float, Mapping[str, Tensor], Number, dict[str, Number], tuple[int, ...] | None]
"""Step, epoch, time, losses, learning rate, gauges, and the members whose journals have the point: None for all."""
_Point = tuple[Any, Any, float, tuple[str, ...], list[Any], tuple[int, ...] | None]
"""Step, epoch, time, the names and values of metrics (one number for all members, or one for each), and the members."""


class ScalarBuffer:
    """The buffer of one or more journals for the scalars of a training, which stay on the device while they are
    pending.

    Adding a point takes a few µs, and nothing waits for the device. All pending points are read with one
    synchronization, and written into each journal with one system call. This is done when a point is added half a
    second after the last reading, when 512 points are pending, and whenever a journal's `latest` is read or another
    record is written into the journal. Therefore, a journal is in order, and a checkpoint is never ahead of its
    journal.

    The points of a stack are read for all members with one transfer, for which the training does not wait. A thread of
    the buffer waits for the transfer, and formats and writes the lines of each member, while the training continues.

    Only the thread that adds points reads the device; for other threads, the numbers may be half a second old.
    """

    def __init__(self) -> None:
        self._journals: Sequence[Journal] = ()
        self._owner = 0
        self._read_at = 0.0
        self._waiting: list[_Waiting] = []
        self._writing: Future[None] | None = None
        self._handed = 0
        self._kind = _Kind(())
        self._kinds: dict[tuple[str, ...], _Kind] = {}
        self._names: dict[tuple[str, ...], tuple[tuple[str, ...], list[int] | None]] = {}

    def add(
        self,
        journals: Sequence[Journal],
        step: Place,
        epoch: Place,
        losses: Mapping[str, Tensor],
        rates: list[float],
        gauges: Mapping[str, Callable[[], Number]],
        only: tuple[int, ...] | None = None,
    ) -> None:
        """Add a point at `step` for each of K journals; its values are recorded under their names, after `train/`.

        Args:
            journals: the journals; the same list object as long as the journals are the same.
            step, epoch: lists of K if they differ.
            losses: tensors `[]`, or `[K]`, on one device. The mapping is kept, not copied.
            rates: K learning rates, recorded as `lr`.
            gauges: further numbers; a gauge replaces a loss of the same name.
            only: the indices in `journals` of the journals that have this point; None for all.
        """
        if journals is not self._journals:
            self._take_up(journals)
        kind = self._kind
        if kind.careful or losses.keys() != kind.names:
            losses = self._kept(losses)
        now = time.time()
        rate = rates[0] if len(rates) == 1 else rates
        read = {name: gauge() for name, gauge in gauges.items()}
        self._waiting.append((step, epoch, now, losses, rate, read, only))
        if len(self._waiting) >= MOST or not 0 <= now - self._read_at < SECONDS:
            self.hand_over()

    def hand_over(self) -> None:
        """Start to write the pending points; the points of a single run are written when this method returns."""
        if not self._waiting or get_ident() != self._owner:
            return
        self._settle()
        waiting, self._waiting = self._waiting, []
        self._read_at = time.time()
        tensors = [tensor for _, _, _, losses, *_ in waiting for tensor in losses.values()]
        journals = self._journals
        if len(journals) > 1:
            numbers = _begin_to_read(tensors, len(journals))
            self._handed = len(waiting)
            self._writing = self._writer.submit(lambda: self._write(journals, self._points(waiting, [*numbers()])))
            return
        on_host = all(tensor.is_cpu for tensor in tensors)
        values = [tensor.tolist() for tensor in tensors] if on_host else _begin_to_read(tensors, 1)()[:, 0].tolist()
        points = self._points(waiting, values)
        if {*map(type, chain.from_iterable([point[4] for point in points]))} != {float}:
            points = [(*point[:4], [*map(_own, point[4])], None) for point in points]
        journals[0].points([point[:5] for point in points])

    def flush(self) -> None:
        """Read the pending points and write them."""
        if get_ident() == self._owner:
            self.hand_over()
            self._settle()

    def salvage(self) -> None:
        """Read as many points as possible of a failed run, whose device may no longer respond."""
        count = len(self._waiting) + (self._handed if self._writing is not None else 0)
        try:
            self.flush()
        except Exception as error:
            log.warning("The last points of the training (%d) could not be written to the journal: %s", count, error)

    @cached_property
    def _writer(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="journals of a stack")

    def _settle(self) -> None:
        """Wait until the points that were handed over are written.

        Raises:
            OSError: the points could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _points(self, waiting: Sequence[_Waiting], numbers: list[Any]) -> list[_Point]:
        """Return the points with the values of their losses, and the recorded names."""
        points: list[_Point] = []
        names: tuple[str, ...] = ()
        places: list[int] | None = None
        of_losses: KeysView[str] | None = None
        of_gauges: KeysView[str] | None = None
        end = 0
        for step, epoch, at, losses, rate, gauges, only in waiting:
            if losses.keys() != of_losses or gauges.keys() != of_gauges:
                of_losses, of_gauges = losses.keys(), gauges.keys()
                names, places = self._named((*losses, "lr", *gauges))
            begin, end = end, end + len(losses)
            values: list[Any] = numbers[begin:end]
            values.append(rate)
            values += gauges.values()
            own = values if places is None else [values[place] for place in places]
            points.append((step, epoch, at, names, own, only))
        return points

    @staticmethod
    def _write(journals: Sequence[Journal], points: list[_Point]) -> None:
        """Write the points of several members."""
        runs = [[*run] for _, run in groupby(points, itemgetter(3, 5))]
        blocks = [StackedPoints(run[0][3], [point[:3] for point in run], [point[4] for point in run]) for run in runs]
        whose = [run[0][5] for run in runs]
        for member, journal in enumerate(journals):
            own = [block for block, only in zip(blocks, whose, strict=True) if only is None or member in only]
            journal.stacked_points(own, member)

    def _take_up(self, journals: Sequence[Journal]) -> None:
        self.flush()
        self._journals, self._owner = journals, get_ident()
        for journal in journals:
            journal.buffer = self

    def _kept(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the losses of a point in a form that can be kept."""
        names = tuple(losses)
        self._kind = self._kinds.setdefault(names, _Kind(names))
        if self._kind.new:
            self._read_at = 0.0
        return self._kind.kept(losses)

    def _named(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], list[int] | None]:
        """Return the recorded names, and the indices of their values; None for all."""
        if names not in self._names:
            last = {f"train/{name}": place for place, name in enumerate(names)}
            self._names[names] = tuple(last), None if len(last) == len(names) else list(last.values())
        return self._names[names]


class _Kind:
    """Kind of point: the common properties of losses with the same names.

    The tensors of a point are kept without a copy. This is correct unless their memory is overwritten, as for a model
    that returns a parameter (a learned temperature) with the losses. Therefore, the first two points of each kind are
    read immediately, and tensors with the same address in both are copied from then on.

    Attributes:
        names: the names of the losses.
        new: whether the next point is one of the first two.
        careful: whether `new` is true, or a tensor must be copied.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = dict.fromkeys(names).keys()
        self.new = self.careful = True
        self._first: tuple[list[Tensor], list[int]] | None = None
        self._copied: frozenset[str] = frozenset()

    def kept(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the losses, with copies of the tensors that must be copied."""
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


def _own(value: Number) -> float:
    """Return the value of a single run."""
    return float(value[0] if isinstance(value, list) else value)


def _begin_to_read(tensors: list[Tensor], members: int) -> Callable[[], npt.NDArray[np.float64]]:
    """Start to read N tensors `[]` or `[K]` with one transfer for all; the number of operations does not depend on K.

    Returns:
        A function that waits for the transfer and returns the numbers, `[N, K]`.
    """
    alike: dict[tuple[torch.dtype, torch.Size], list[int]] = {}
    for place, tensor in enumerate(tensors):
        alike.setdefault((tensor.dtype, tensor.shape), []).append(place)
    parts = [torch.stack([tensors[place] for place in places]).detach() for places in alike.values()]
    rows = [part.to(torch.float64).reshape(len(part), -1).expand(-1, members) for part in parts]
    table = torch.cat(rows) if rows else torch.zeros(0, members, dtype=torch.float64)
    order = np.argsort([place for places in alike.values() for place in places])
    event = None
    if table.is_cuda:
        host = torch.empty(table.shape, dtype=table.dtype, pin_memory=True)
        host.copy_(table, non_blocking=True)
        event = torch.cuda.current_stream(table.device).record_event()
    else:
        host = table.cpu()

    def read() -> npt.NDArray[np.float64]:
        if event is not None:
            event.synchronize()
        numbers: npt.NDArray[np.float64] = host.numpy()[order]
        return numbers

    return read
