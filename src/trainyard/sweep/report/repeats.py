"""Repeats: jobs of one configuration that differ only in the seed or the fold of a cross-validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from trainyard.sweep.goals import Direction
from trainyard.sweep.report.rows import JobRow, front_of, keys
from trainyard.sweep.report.samples import Difference, Sample, differences

KEYS = ("seed", "data.fold")
"""Overrides in which repeats of a configuration differ."""
LEFT = ("waiting", "running", "paused", "interrupted")
"""States of jobs that may have an objective later."""


@dataclass(frozen=True)
class Configuration:
    """Jobs that are repeats of each other.

    Attributes:
        overrides: the overrides that they share.
        rows: the jobs.
        most: the maximum number of jobs of a configuration.
        needed: the number of jobs with an objective that a configuration needs for a rank; 0 for `most`.
    """

    overrides: dict[str, str]
    rows: list[JobRow]
    most: int = 0
    needed: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether the number of jobs that finished with an objective is the maximum; other configurations have no rank.

        If all jobs have ended, and every configuration lacks some, it is the maximum of the jobs that finished.
        """
        return self.n == (self.needed or max(self.most, len(self.rows)))

    @property
    def count(self) -> str:
        """`n` for users: `3`, or `2/3` if jobs failed, or if the configuration was raced out before they started."""
        most = max(self.most, len(self.rows))
        return str(self.n) if self.n == most else f"{self.n}/{most}"

    @property
    def label(self) -> str:
        """Label such as `optim.lr=0.001 model=mlp`; `all jobs` for jobs that differ only in the seed."""
        return " ".join(f"{key}={value}" for key, value in self.overrides.items()) or "all jobs"

    @property
    def objectives(self) -> list[float]:
        """Objectives of the jobs that finished with one."""
        return [row.objective for row in self.rows if row.ranked and row.objective is not None]

    @cached_property
    def sample(self) -> Sample:
        """Statistics of the objectives."""
        return Sample.of(self.objectives)

    def sample_of(self, values: Mapping[int, float]) -> Sample:
        """Return the statistics of a metric over the jobs that finished with an objective.

        Args:
            values: the metric of each job that has it, by the job's number.
        """
        return Sample.of([values[row.num] for row in self.rows if row.ranked and row.num in values])

    @property
    def n(self) -> int:
        """Number of jobs that finished with an objective."""
        return self.sample.n

    @property
    def mean(self) -> float | None:
        """Mean of the objectives; None if there is none."""
        return self.sample.mean

    @property
    def std(self) -> float | None:
        """Standard deviation of the objectives, with n - 1; None for fewer than two."""
        return self.sample.std

    @property
    def margin(self) -> float | None:
        """Half of the width of the 95 % confidence interval of the mean, by Student's t; None for fewer than two."""
        return self.sample.margin

    def pairs(self, values: Mapping[int, float]) -> dict[Sequence[str], float]:
        """Return a metric of the jobs that finished with an objective, by their seed and fold."""
        return {
            tuple(row.overrides.get(key, "") for key in KEYS): values[row.num]
            for row in self.rows
            if row.ranked and row.num in values
        }


def repeated(rows: Sequence[JobRow]) -> list[str]:
    """Return the keys of repeats that vary between these jobs."""
    return [key for key in KEYS if len({row.overrides.get(key) for row in rows}) > 1]


def tuned(rows: Sequence[JobRow]) -> list[str]:
    """Return the keys that vary between these jobs and are parameters: neither the seed nor the fold."""
    return [key for key in keys(rows) if key not in KEYS and len({row.overrides.get(key) for row in rows}) > 1]


def configurations(rows: Sequence[JobRow], direction: Direction) -> list[Configuration]:
    """Return the configurations, best mean first; empty if no two jobs are repeats of each other.

    Configurations with fewer finished jobs than others come last. With several objectives there are none.

    Args:
        rows: the jobs, in any order.
        direction: whether a high or a low objective is better.
    """
    if not repeated(rows) or front_of(rows):
        return []
    found = grouped(rows, direction)
    return [] if len(found) == len(rows) else found


def grouped(rows: Sequence[JobRow], direction: Direction) -> list[Configuration]:
    """Return the configurations like `configurations`, including those with a single job."""
    found: dict[tuple[tuple[str, str], ...], Configuration] = {}
    for row in sorted(rows, key=lambda row: row.num):
        shared = {key: value for key, value in row.overrides.items() if key not in KEYS}
        found.setdefault(tuple(sorted(shared.items())), Configuration(shared, [])).rows.append(row)
    most = max((len(each.rows) for each in found.values()), default=0)
    has_ended = all(row.state not in LEFT for row in rows)
    needed = max((each.n for each in found.values()), default=0) if has_ended else most
    sign = -1.0 if direction == "maximize" else 1.0

    def order(each: Configuration) -> tuple[bool, bool, float, int]:
        mean = each.mean
        missing = mean is None or math.isnan(mean)
        return missing, not each.is_whole, 0.0 if missing else sign * (mean or 0.0), each.rows[0].num

    return sorted((replace(each, most=most, needed=needed) for each in found.values()), key=order)


def compared(found: Sequence[Configuration], values: Mapping[int, float]) -> list[Difference | None]:
    """Return the paired difference of each configuration from the first one; None for the first one itself.

    Args:
        found: the configurations, best first.
        values: the compared metric, by the number of the job.
    """
    if not found:
        return []
    best, *others = (each.pairs(values) for each in found)
    return [None, *differences(best, others)]
