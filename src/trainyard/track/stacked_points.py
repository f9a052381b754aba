"""Points of the members of a stack, which turn one table of numbers into the lines of many journals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainyard.track.journal import Point, to_json


class StackedPoints:
    """Consecutive points with the same names, for K members.

    The common part of the members is formatted once; the rest of a member's lines takes one operation.

    Args:
        names: the names of the metrics.
        places: the step, epoch and time (Unix seconds) of each point; step and epoch are lists of K if they differ.
        values: for each point, a value for each name: one number for all members, or a list or an array of K.

    Attributes:
        names: the names of the metrics.
    """

    def __init__(
        self, names: tuple[str, ...], places: Sequence[tuple[Any, Any, float]], values: Sequence[Sequence[Any]]
    ) -> None:
        self.names = names
        self._places = places
        self._values = values
        labels = [to_json(name).replace("%", "%%") for name in names]
        lines = []
        own = []
        finite = True
        for (step, epoch, at), row in zip(places, values, strict=True):
            texts = []
            if _is_own(step):
                own += [step, epoch]
                step = epoch = "%d"
            for value in row:
                if _is_own(value):
                    own.append(value)
                    texts.append("%r")
                else:
                    finite = finite and math.isfinite(value)
                    texts.append(repr(float(value)))
            fields = ",".join([f"{label}:{text}" for label, text in zip(labels, texts, strict=True)])
            lines.append(f'{{"kind":"metrics","time":{at!r},"step":{step},"epoch":{epoch},"values":{{{fields}}}}}\n')
        self._form = "".join(lines)
        table = np.array(own, dtype=np.float64)
        self._columns: list[list[float]] = table.T.tolist()
        self._finite: bool | list[bool] = (np.isfinite(table).all(0) & finite).tolist() if own else finite

    def first(self, member: int) -> int:
        """Return the lowest step of a member."""
        return min(int(_own_of(step, member)) for step, _, _ in self._places)

    def last(self, member: int) -> int:
        """Return the step of a member's latest values."""
        return int(_own_of(self._places[-1][0], member))

    def text(self, member: int) -> str | None:
        """Return a member's lines in its journal; None if a number is not finite."""
        finite = self._finite[member] if isinstance(self._finite, list) else self._finite
        own = self._columns[member] if self._columns else ()
        return self._form % tuple(own) if finite else None

    def points(self, member: int) -> list[Point]:
        """Return a member's points."""
        return [
            (_own_of(step, member), _own_of(epoch, member), at, self.names, _of(row, member))
            for (step, epoch, at), row in zip(self._places, self._values, strict=True)
        ]

    def latest(self, member: int) -> dict[str, float]:
        """Return a member's latest values."""
        return dict(zip(self.names, _of(self._values[-1], member), strict=True))


def _is_own(value: Any) -> bool:
    return isinstance(value, list | np.ndarray)


def _of(row: Sequence[Any], member: int) -> list[float]:
    return [float(_own_of(value, member)) for value in row]


def _own_of(value: Any, member: int) -> Any:
    return value[member] if _is_own(value) else value
