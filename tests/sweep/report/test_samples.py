"""Statistics of repeats, compared with scipy.stats."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped,unused-ignore]

from trainyard.sweep.report.samples import Sample, differences, holm


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
def test_the_interval_is_that_of_students_t(values: list[float]) -> None:
    sample = Sample.of(values)
    assert sample.mean is not None
    assert sample.margin is not None
    if not sample.std:
        return
    scale = stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=sample.mean, scale=scale)
    assert (sample.mean - sample.margin, sample.mean + sample.margin) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


def test_few_and_huge_numbers() -> None:
    assert Sample.of([]) == Sample(0)
    assert Sample.of([3.0]) == Sample(1, 3.0)
    assert Sample.of([1e308, 1e308]).mean == math.inf
    assert math.isnan(Sample.of([math.inf, -math.inf]).mean or 0.0)


def test_differences_are_paired_by_seed() -> None:
    best = {("0",): 0.9, ("1",): 0.8, ("2",): 0.7, ("3",): 0.95}
    other = {("0",): 0.85, ("1",): 0.79, ("2",): 0.6, ("9",): 0.1}
    (found,) = differences(best, [other])
    assert found.sample.n == 3
    assert found.p == pytest.approx(stats.ttest_rel([0.85, 0.79, 0.6], [0.9, 0.8, 0.7]).pvalue)
    assert found.corrected == found.p
    same, single = differences(best, [dict.fromkeys(best, 0.0) | best, {("1",): 0.5}])
    assert (same.p, same.sample.mean) == (None, 0.0)
    assert (single.p, single.sample.n) == (None, 1)


def test_numbers_that_are_equal_up_to_rounding_have_no_spread() -> None:
    assert (Sample.of([0.99] * 3).std, Sample.of([0.99] * 3).margin) == (0.0, 0.0)
    assert Sample.of([0.99, 0.99, 0.99 + 1e-13]).std != 0.0
    best = {("0",): 179 / 180, ("1",): 178 / 180, ("2",): 176 / 180}
    one_less = {("0",): 178 / 180, ("1",): 177 / 180, ("2",): 175 / 180}
    (found,) = differences(best, [one_less])
    assert (found.p, found.sample.std, found.sample.margin) == (None, 0.0, 0.0)
    assert found.sample.mean == pytest.approx(-1 / 180)


def test_holms_correction_of_his_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_only_raises(values: list[float]) -> None:
    corrected = [each for each in holm(values) if each is not None]
    assert all(before <= after <= 1 for before, after in zip(values, corrected, strict=True))
    for (p, own), (q, other) in itertools.combinations(zip(values, corrected, strict=True), 2):
        assert (p < q and own <= other) or (q < p and other <= own) or p == q
