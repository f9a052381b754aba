"""Parameter importance: the share of the differences between jobs that each parameter explains."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Hashable, Sequence

from trainyard.sweep.report.rows import JobRow, parse

METHOD = (
    "The share of the variance in the jobs' order that each parameter explains by itself: ε² of the ranks "
    "(the effect size of the Kruskal-Wallis test), corrected for the number of values. "
    "0: it makes no difference, 1: it decides alone. Numbers that hardly repeat are put into bins of equal count. "
    "What the bars leave is interplay of parameters, and chance."
)


def importance(rows: Sequence[JobRow], key: str) -> float | None:
    """Return the share of the variance of the objective's ranks that lies between the values of one parameter.

    Epsilon squared (Kelley, 1935) of ranks: 1 - (1 - η²)(n - 1)/(n - k) for n jobs with k values, at least 0. It uses
    ranks so that a diverged job counts as the last one and not as all of the variance. In a full grid the shares of all
    parameters add up to at most 1.

    Args:
        rows: the jobs; only those with an objective count.
        key: the parameter.

    Returns:
        A number in [0, 1]; None if there are too few jobs (fewer than two of each value on average).
    """
    ranked = [row for row in rows if row.ranked]
    groups = _groups([row.overrides.get(key) for row in ranked])
    if groups is None:
        return None
    objectives = [row.objective or 0.0 for row in ranked]
    in_order = sorted(objectives)
    ranks = [(bisect_left(in_order, value) + bisect_right(in_order, value)) / 2 for value in objectives]
    mean = sum(ranks) / len(ranks)
    total = sum((value - mean) ** 2 for value in ranks)
    if total == 0:
        return 0.0
    members: dict[Hashable, list[float]] = defaultdict(list)
    for group, value in zip(groups, ranks, strict=True):
        members[group].append(value)
    within = sum(sum((value - sum(each) / len(each)) ** 2 for value in each) for each in members.values())
    return max(0.0, 1 - within / total * (len(ranks) - 1) / (len(ranks) - len(members)))


def _groups(texts: Sequence[str | None]) -> Sequence[Hashable] | None:
    """Return the group of each job: jobs of the same value, or of the same bin of nearby numbers."""
    if len(texts) < 4:
        return None
    if 1 < 2 * len(set(texts)) <= len(texts):
        return texts
    values = parse(texts)
    numbers = [value for value in values if isinstance(value, float | int)]
    bins = min(8, len(texts) // 4)
    if len(numbers) < len(texts) or bins < 2:
        return None
    in_order = sorted(numbers)
    return [bisect_left(in_order, value) * bins // len(in_order) for value in numbers]
