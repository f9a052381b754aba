"""Phases of the Logger: when a point of each member is due, and how many iterations it covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class LogPhase:
    """Members whose points are due after the same iterations.

    Attributes:
        lanes: the members, by index; None for all.
        due: the remainder, by the interval, of the Runner's iterations at which a point is due.
        count: the last iterations that the next point covers so far.
    """

    lanes: tuple[int, ...] | None
    due: int
    count: int

    def has(self, lane: int) -> bool:
        return self.lanes is None or lane in self.lanes


def log_phases(interval: int, ahead: Sequence[int], counts: Sequence[int]) -> list[LogPhase]:
    """Return the phases of K members: a member has a point where `interval` divides its own iterations.

    Args:
        interval: iterations between two points.
        ahead: the number of iterations by which each member is ahead of the count of the Runner.
        counts: the number of iterations that the next point of each member covers so far.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for lane, (own, count) in enumerate(zip(ahead, counts, strict=True)):
        found.setdefault((-own % interval, count), []).append(lane)
    if len(found) == 1:
        ((due, count),) = found
        return [LogPhase(None, due, count)]
    return [LogPhase(tuple(lanes), due, count) for (due, count), lanes in found.items()]
