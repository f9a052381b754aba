"""Statistics of repeats: mean, standard deviation, confidence interval, paired differences, Holm's correction."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainyard.sweep.report.axes import drawable

LEVEL = 0.95
_ROUNDING = 8 * sys.float_info.epsilon  # relative: a smaller spread is that of the rounding of equal numbers


@dataclass(frozen=True)
class Sample:
    """Mean and spread of some numbers.

    Attributes:
        n: the number of values.
        mean: their mean; None if there are none.
        std: their standard deviation, with n - 1; 0 for numbers that are equal up to rounding; None for fewer than two.
        margin: half of the width of the 95 % confidence interval of the mean, by Student's t; None for fewer than two.
    """

    n: int
    mean: float | None = None
    std: float | None = None
    margin: float | None = None

    @classmethod
    def of(cls, values: Sequence[float], scale: float | None = None) -> Sample:
        """Return the statistics of some numbers.

        Args:
            values: the numbers.
            scale: the largest absolute value of the numbers from which the values were computed, which sets their
                rounding; None: that of the values.
        """
        count = len(values)
        if not values:
            return cls(0)
        mean = _sum(values) / count
        if count < 2:
            return cls(count, mean)
        aside = [value - mean for value in values]
        std = math.sqrt(_sum([each * each for each in aside]) / (count - 1))
        if std <= _ROUNDING * (max(map(abs, values)) if scale is None else scale):
            std = 0.0
        return cls(count, mean, std, _quantile(count - 1) * std / math.sqrt(count))


@dataclass(frozen=True)
class Difference:
    """Paired difference of a configuration from the best one.

    Attributes:
        sample: the differences of the pairs: jobs of both that share the seed and the fold.
        p: the two-sided p-value of the paired t-test; None for fewer than two pairs, or if all differences are equal
            up to rounding.
        corrected: the p-value with Holm's correction for all comparisons.
    """

    sample: Sample
    p: float | None = None
    corrected: float | None = None


def differences(
    best: Mapping[Sequence[str], float], others: Iterable[Mapping[Sequence[str], float]]
) -> list[Difference]:
    """Return the paired differences of other configurations from the best one: their values minus those of the best.

    Args:
        best: the values of the best configuration, by the seed and the fold that pair them.
        others: the values of the other configurations.
    """
    samples = [_paired(best, own) for own in others]
    found = [_p_value(sample) for sample in samples]
    corrected = holm(found)
    return [Difference(*each) for each in zip(samples, found, corrected, strict=True)]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values with the step-down correction of Holm ("A Simple Sequentially Rejective …", 1979).

    Args:
        p_values: the p-value of each comparison; None if there is none, which does not count as a comparison.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for place, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - place)))
        corrected[index] = largest
    return corrected


def _paired(best: Mapping[Sequence[str], float], own: Mapping[Sequence[str], float]) -> Sample:
    """Return the statistics of the differences of the pairs."""
    pairs = [(own[pair], best[pair]) for pair in own if pair in best and drawable(own[pair] - best[pair])]
    scale = max((abs(value) for pair in pairs for value in pair), default=0.0)
    return Sample.of([value - other for value, other in pairs], scale)


def _sum(values: Sequence[float]) -> float:
    """Return an exact sum; infinity or NaN if it overflows."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return sum(values)


def _p_value(sample: Sample) -> float | None:
    if sample.mean is None or not sample.std:
        return None
    from scipy.special import stdtr  # type: ignore[import-untyped,unused-ignore]

    t = abs(sample.mean) / (sample.std / math.sqrt(sample.n))
    return 2 * float(stdtr(sample.n - 1, -t))


def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))
