"""Repeats: jobs of one configuration that differ in nothing but the seed or the fold of a cross-validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from trainyard.sweep.report.rows import Direction, JobRow

KEYS = ("seed", "data.fold")
"""Overrides in which repeats of a configuration differ."""


@dataclass(frozen=True)
class Configuration:
    """Jobs that are repeats of one another.

    Attributes:
        overrides: those that they share.
        rows: the jobs.
    """

    overrides: dict[str, str]
    rows: list[JobRow]

    @property
    def objectives(self) -> list[float]:
        """Objectives of the jobs that finished with one."""
        return [row.objective for row in self.rows if row.ranked and row.objective is not None]

    @property
    def n(self) -> int:
        """Number of jobs that finished with an objective."""
        return len(self.objectives)

    @property
    def mean(self) -> float | None:
        """Mean of the objectives; None if there is none."""
        return fmean(self.objectives) if self.objectives else None

    @property
    def std(self) -> float | None:
        """Standard deviation of the objectives, with n - 1; None for fewer than two."""
        found = self.objectives
        if len(found) < 2:
            return None
        centre = fmean(found)
        return math.sqrt(math.fsum((value - centre) ** 2 for value in found) / (len(found) - 1))


def repeated(rows: Sequence[JobRow]) -> list[str]:
    """Return the keys of repeats that vary between these jobs."""
    return [key for key in KEYS if len({row.overrides.get(key) for row in rows}) > 1]


def configurations(rows: Sequence[JobRow], direction: Direction) -> list[Configuration]:
    """Return the configurations, best mean first; empty if no two jobs are repeats of one another.

    Those with a job that has not finished with an objective come after those without.

    Args:
        rows: the jobs, in any order.
        direction: whether a high or a low objective is better.
    """
    if not repeated(rows):
        return []
    found: dict[tuple[tuple[str, str], ...], Configuration] = {}
    for row in sorted(rows, key=lambda row: row.num):
        shared = {key: value for key, value in row.overrides.items() if key not in KEYS}
        found.setdefault(tuple(sorted(shared.items())), Configuration(shared, [])).rows.append(row)
    if len(found) == len(rows):
        return []
    sign = -1.0 if direction == "maximize" else 1.0

    def order(each: Configuration) -> tuple[bool, bool, float, int]:
        mean = each.mean
        missing = mean is None or math.isnan(mean)
        return missing, each.n < len(each.rows), 0.0 if missing else sign * (mean or 0.0), each.rows[0].num

    return sorted(found.values(), key=order)
