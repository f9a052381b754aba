"""Repeats: jobs of one configuration that differ only in the seed or the fold of a cross-validation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from trainyard.sweep.events import FIRST_CLONE
from trainyard.sweep.goals import Direction
from trainyard.sweep.report.rows import JobRow, front_of, keys
from trainyard.sweep.report.samples import Difference, Sample, differences

KEYS = ("seed", "data.fold")
"""Overrides in which repeats of a configuration differ."""
LEFT = ("waiting", "running", "paused", "interrupted")
"""States of jobs that may have an objective later."""


@dataclass(frozen=True)
class Configuration:
    """Jobs that are repeats of each other: each has another seed or fold.

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

    def value(self, key: str) -> str | None:
        """Return the value of an override that all jobs share; None if they share none."""
        found = {row.overrides.get(key) for row in self.rows}
        return found.pop() if len(found) == 1 else None

    def pairs(self, values: Mapping[int, float]) -> dict[Sequence[str], float]:
        """Return a metric of the jobs that finished with an objective, by their seed and fold."""
        return {
            tuple(row.overrides.get(key, "") for key in KEYS): values[row.num]
            for row in self.rows
            if row.ranked and row.num in values
        }


def history(num: int, overrides: Sequence[str], *, in_population: bool) -> str:
    """Return how a job was trained before it had its current overrides; only jobs with equal histories can be repeats.

    Args:
        num: the number of the job.
        overrides: its overrides, as recorded.
        in_population: whether the sweep trains a population. The values of its members change during the training, so
            no member is a repeat of another one.

    Returns:
        A text that is equal for clones of the same configuration with the same changes, and different for all members
        of a population. It is empty for other jobs.
    """
    if in_population:
        return f"#{num}"
    if num < FIRST_CLONE:
        return ""
    return " ".join(line for line in overrides if line.partition("=")[0].lstrip("+") not in KEYS)


def seeds_vary(rows: Sequence[JobRow]) -> bool:
    """Return whether the seed or the fold varies between these jobs."""
    return any(len({row.overrides.get(key) for row in rows}) > 1 for key in KEYS)


def repeated(found: Sequence[Configuration]) -> list[str]:
    """Return the keys in which the repeats of these configurations differ."""
    return [key for key in KEYS if any(len({row.overrides.get(key) for row in each.rows}) > 1 for each in found)]


def tuned(rows: Sequence[JobRow], over: Collection[str] = KEYS) -> list[str]:
    """Return the keys that vary between these jobs and are parameters.

    Args:
        rows: the jobs.
        over: the keys that are no parameters: by default, the seed and the fold.
    """
    return [key for key in keys(rows) if key not in over and len({row.overrides.get(key) for row in rows}) > 1]


def configurations(rows: Sequence[JobRow], direction: Direction) -> list[Configuration]:
    """Return the configurations, best mean first; empty if no two jobs are repeats of each other.

    Configurations with fewer finished jobs than others come last. With several objectives there are none.

    Args:
        rows: the jobs, in any order.
        direction: whether a high or a low objective is better.
    """
    if not seeds_vary(rows) or front_of(rows):
        return []
    found = grouped(rows, direction)
    return [] if len(found) == len(rows) else found


def grouped(rows: Sequence[JobRow], direction: Direction) -> list[Configuration]:
    """Return the configurations like `configurations`, including those with a single job.

    Jobs with the same seed and fold, or with different histories, are not repeats: they are in different
    configurations, even if their values are equal.
    """
    found: dict[tuple[Any, ...], Configuration] = {}
    alike: Counter[tuple[Any, ...]] = Counter()  # jobs with the same values, the seed and the fold included
    for row in sorted(rows, key=lambda row: row.num):
        shared = {key: value for key, value in row.overrides.items() if key not in KEYS}
        values, own = tuple(sorted(shared.items())), tuple(row.overrides.get(key) for key in KEYS)
        before = alike[row.history, values, own]
        alike[row.history, values, own] += 1
        found.setdefault((row.history, values, before), Configuration(shared, [])).rows.append(row)
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
