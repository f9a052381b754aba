"""Replays of a table in simulated time, and what is read from them.

A replay is a list of pieces: a trial, its configuration, and the epochs that it trained in one go until a time.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from table import Problem

WORKERS = 8
"""Simulated workers."""
NEAR = 0.99
"""Share of the best known value that is to be reached."""


@dataclass(frozen=True)
class Piece:
    """Epochs of a trial.

    Attributes:
        trial: its number.
        index: the number of its configuration in the table.
        after: the epochs that it had before.
        until: the epochs that it has then.
        time: when the last of them ended.
    """

    trial: int
    index: int
    after: int
    until: int
    time: float


class Clock:
    """Counts the epochs of a replay, and says when it has gone on long enough."""

    def __init__(self, problem: Problem) -> None:
        self.pieces: list[Piece] = []
        self._problem = problem
        self._epochs = 0
        self._best = -np.inf

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self._epochs += piece.until - piece.after
        own = self._problem.values[piece.index, piece.after : piece.until]
        self._best = max(self._best, float(own.max()))

    @property
    def is_over(self) -> bool:
        whole = self._epochs / self._problem.epochs
        return whole >= self._problem.most or (whole >= self._problem.least and self._best >= NEAR * self._problem.best)


@dataclass(frozen=True)
class Segment:
    """Epochs that a search wants to be trained.

    Attributes:
        trial: the trial, as the search knows it.
        number: the trial's number.
        point: its values.
        after: the epochs that it has.
        until: the epoch at which the search decides again, by itself.
    """

    trial: Any
    number: int
    point: Mapping[str, Any]
    after: int = 0
    until: int | None = None


Verdict = Literal["on", "over"]


def run(
    problem: Problem, ask: Callable[[], Segment], report: Callable[[Any, int, float, bool], Verdict]
) -> list[Piece]:
    """Let workers train what a search suggests, epoch by epoch, until it has gone on long enough.

    Args:
        problem: the problem.
        ask: returns what a free worker is to train.
        report: takes a trial, its epochs, its value then and whether the segment ends there; says whether it goes on.
    """
    clock = Clock(problem)
    order = itertools.count()
    coming: list[tuple[float, int, Segment, int, int]] = []  # time, order, segment, configuration, epoch

    def begin(now: float) -> None:
        own = ask()
        index = problem.index(own.point)
        heapq.heappush(coming, (now + problem.seconds[index], next(order), own, index, own.after + 1))

    for _ in range(WORKERS):
        begin(0.0)
    while not clock.is_over:
        now, _, own, index, epoch = heapq.heappop(coming)
        clock.add(Piece(own.number, index, epoch - 1, epoch, now))
        is_last = epoch == (problem.epochs if own.until is None else own.until)
        if report(own.trial, epoch, float(problem.values[index, epoch - 1]), is_last) == "on" and not is_last:
            heapq.heappush(coming, (now + problem.seconds[index], next(order), own, index, epoch + 1))
        else:
            begin(now)
    return clock.pieces


@dataclass(frozen=True)
class Course:
    """What a replay has reached, epoch by epoch in the order of their ends.

    Attributes:
        times: of each epoch's end.
        best: the best value so far.
        twice: the epochs that were trained again.
    """

    times: np.ndarray
    best: np.ndarray
    twice: int

    @classmethod
    def of(cls, problem: Problem, pieces: Sequence[Piece]) -> Course:
        """Return the course of a replay."""
        epochs = [
            (piece.time - (piece.until - epoch) * problem.seconds[piece.index], piece.trial, piece.index, epoch)
            for piece in pieces
            for epoch in range(piece.after + 1, piece.until + 1)
        ]
        epochs.sort()
        seen = {(trial, epoch) for _, trial, _, epoch in epochs}
        values = [problem.values[index, epoch - 1] for _, _, index, epoch in epochs]
        return cls(np.array([each[0] for each in epochs]), np.maximum.accumulate(values), len(epochs) - len(seen))

    def regret(self, problem: Problem, epochs: int) -> float:
        """Return how far the best value after so many epochs, of all workers together, is from the best known."""
        return problem.best - float(self.best[min(epochs, len(self.best)) - 1])

    def time_to_near(self, problem: Problem) -> float:
        """Return when a value near the best known one was reached; the end of the replay, if it was not."""
        reached = np.flatnonzero(self.best >= NEAR * problem.best)
        return float(self.times[reached[0]] if len(reached) else self.times[-1])
