"""Repeats: jobs of one configuration that differ in nothing but the seed or the fold of a cross-validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from trainyard.sweep.goals import Direction
from trainyard.sweep.report.rows import JobRow

KEYS = ("seed", "data.fold")
"""Overrides in which repeats of a configuration differ."""


@dataclass(frozen=True)
class Configuration:
    """Jobs that are repeats of one another.

    Attributes:
        overrides: those that they share.
        rows: the jobs.
        most: the number of jobs of the configuration that has most.
    """

    overrides: dict[str, str]
    rows: list[JobRow]
    most: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether as many jobs finished with an objective as any configuration has; others have no rank."""
        return self.n == max(self.most, len(self.rows))

    @property
    def count(self) -> str:
        """`n` for people: `3`, or `2/3` where jobs failed, or the configuration was raced out before they began."""
        return str(self.n) if self.is_whole else f"{self.n}/{max(self.most, len(self.rows))}"

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

    @property
    def margin(self) -> float | None:
        """Half of the width of the 95 % confidence interval of the mean, by Student's t; None for fewer than two."""
        std = self.std
        if std is None:
            return None
        from scipy.special import stdtrit  # type: ignore[import-untyped,unused-ignore]

        return float(stdtrit(self.n - 1, 0.975)) * std / math.sqrt(self.n)


def repeated(rows: Sequence[JobRow]) -> list[str]:
    """Return the keys of repeats that vary between these jobs."""
    return [key for key in KEYS if len({row.overrides.get(key) for row in rows}) > 1]


def configurations(rows: Sequence[JobRow], direction: Direction) -> list[Configuration]:
    """Return the configurations, best mean first; empty if no two jobs are repeats of one another.

    Those with fewer jobs that finished with an objective than the others have jobs come last.

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
    most = max(len(each.rows) for each in found.values())
    sign = -1.0 if direction == "maximize" else 1.0

    def order(each: Configuration) -> tuple[bool, bool, float, int]:
        mean = each.mean
        missing = mean is None or math.isnan(mean)
        return missing, not each.is_whole, 0.0 if missing else sign * (mean or 0.0), each.rows[0].num

    return sorted((replace(each, most=most) for each in found.values()), key=order)
