"""Parameter importance: the fraction of the differences between jobs that each parameter explains."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

from trainyard.sweep.goals import Direction
from trainyard.sweep.proposers.quiet import quiet
from trainyard.sweep.report.axes import Scale, drawable
from trainyard.sweep.report.rows import JobRow, parse

METHOD = (
    "The fraction of the variance in the ranks of the jobs that each parameter explains alone. This is η², "
    "the effect size of the Kruskal-Wallis test: (H - k + 1)/(n - k) for n jobs with k values. 0: no effect. 1: the "
    "parameter explains the ranks completely. Numeric parameters with few repeated values are divided into bins of "
    "equal count. The remaining variance is due to interactions of parameters and to chance."
)
METHOD_OF_SEARCH = (
    "The importance of each parameter for being among the best 10 % of the jobs: PED-ANOVA, computed by Optuna "
    "(Watanabe et al., IJCAI 2023). The bars add up to 1. With few jobs, this is a rough estimate."
)
LEAST = 4
"""Minimum number of jobs with an objective for Optuna's evaluator."""


def importance_in_search(rows: Sequence[JobRow], names: Sequence[str], direction: Direction) -> dict[str, float | None]:
    """Return the importance of each parameter in a search, by Optuna's `PedAnovaImportanceEvaluator`.

    Args:
        rows: the jobs; only those with a finite objective count.
        names: the parameters.
        direction: whether a high or a low objective is better.

    Returns:
        Numbers that add up to 1; None if there are too few jobs, or if a parameter belongs to only some of them and
        Optuna omits it.
    """
    ranked = [row for row in rows if row.ranked and drawable(row.objective)]
    none: dict[str, float | None] = dict.fromkeys(names)
    if len(ranked) < LEAST or len({row.objective for row in ranked}) == 1:
        return none
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    columns = {name: _column([row.overrides.get(name) for row in ranked]) for name in names}
    study_of = partial(optuna.create_study, direction=direction, sampler=optuna.samplers.RandomSampler(0))
    with quiet():
        study = study_of()
        for index, row in enumerate(ranked):
            own = {name: values[index] for name, (values, _) in columns.items() if values[index] is not None}
            distributions = {name: columns[name][1] for name in own}
            study.add_trial(optuna.create_trial(value=row.objective, params=own, distributions=distributions))
        try:
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
        except ValueError:  # of parameters that all belong to some jobs only, before Optuna 5.0
            return none
    return {name: float(found[name]) if name in found else None for name in names}


def _column(texts: Sequence[str | None]) -> tuple[Sequence[Any], Any]:
    """Return the values of a parameter, and an Optuna distribution over them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    values = parse(texts)
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if not numbers or len(set(numbers)) < 2 or not all(map(drawable, numbers)):
        return texts, CategoricalDistribution(sorted({text for text in texts if text is not None}))
    scale = Scale.over(numbers)
    return values, FloatDistribution(float(min(numbers)), float(max(numbers)), log=scale.log)


def importance(rows: Sequence[JobRow], key: str) -> float | None:
    """Return the fraction of the variance of the objective's ranks that one parameter explains.

    The effect size η² of the Kruskal-Wallis test (Tomczak and Tomczak, 2014): (H - k + 1)/(n - k) for n jobs with k
    values, at least 0. It uses ranks, so that a diverged job counts as the last one and does not dominate the variance.
    In a full grid, the fractions of all parameters add up to at most 1.

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
