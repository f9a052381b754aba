"""Splits: every row once, sizes as asked, stratified."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trainyard.data.split import Fold, fractions, split_rows
from trainyard.errors import ConfigError

shares = st.fixed_dictionaries({"val": st.floats(0, 0.45), "test": st.floats(0, 0.45)})


def sizes(n: Any, shares: Any) -> Any:
    return {split: max(1, round(n * share)) for split, share in shares.items() if share}


@given(n=st.integers(3, 400), shares=shares, seed=st.integers(0, 2**32))
def test_every_row_is_in_one_split(n: int, shares: Any, seed: int) -> None:
    assume(sum(sizes(n, shares).values()) < n)
    rows = split_rows(n, shares, seed)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(n))
    assert {split: len(rows[split]) for split in rows if split != "train"} == sizes(n, shares)
    assert list(rows) == [split for split in ("train", "val", "test") if split in rows]
    again = split_rows(n, shares, seed)
    assert all((rows[split] == again[split]).all() for split in rows)


@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 4),
    shares=shares,
    seed=st.integers(0, 99),
    order=st.randoms(use_true_random=False),
)
def test_each_class_gives_each_split_its_share(counts: Any, shares: Any, seed: int, order: Any) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    order.shuffle(labels)
    labels = np.array(labels)  # type: ignore[assignment]
    n = len(labels)
    wanted = sizes(n, shares)
    assume(sum(wanted.values()) < n)
    wanted["train"] = n - sum(wanted.values())
    for split, rows in split_rows(n, shares, seed, labels).items():
        assert len(rows) == wanted[split]
        for label, count in enumerate(counts):
            assert abs((labels[rows] == label).sum() - count * wanted[split] / n) < 2.0 + 1e-9  # type: ignore[attr-defined]


def test_seeds_split_differently() -> None:
    splits = [tuple(split_rows(50, {"val": 0.2, "test": 0.2}, seed)["test"]) for seed in range(20)]
    assert len(set(splits)) == 20


@pytest.mark.parametrize(
    ("val", "test", "key"),
    [
        (-0.1, 0.1, "val_fraction"),
        (0.1, 1.0, "test_fraction"),
        (1.5, 0, "val_fraction"),
        (0.5, 0.5, "val_fraction"),
        ("0.1", 0.1, "val_fraction"),
        (0.1, None, "test_fraction"),
        (float("nan"), 0.1, "val_fraction"),
        (True, 0.1, "val_fraction"),
    ],
)
def test_bad_fractions_are_refused(val: Any, test: float | None, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fractions(val, test)
    assert caught.value.key == key


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="that leaves training samples: the data has 2 samples"):
        split_rows(2, {"val": 0.1, "test": 0.1}, 0)


@pytest.mark.parametrize("seed", [-1, 0.5, "a"])
def test_bad_seeds_are_refused(seed: float | str) -> None:
    with pytest.raises(ConfigError, match="split_seed"):
        split_rows(10, {"val": 0.1, "test": 0.1}, seed)


@given(
    labels=st.lists(st.integers(0, 3), min_size=8, max_size=60),
    count=st.integers(2, 6),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 99),
)
def test_folds_share_the_rows_that_are_not_tested(labels: Any, count: int, test: float, seed: int) -> None:
    n, classes = len(labels), np.array(labels)
    assume(n - sizes(n, {"test": test}).get("test", 0) > count)
    parts = [split_rows(n, {"val": 0.9, "test": test}, seed, classes, fold=Fold(k, count)) for k in range(count)]
    tested = parts[0].get("test", np.array([], int))
    assert all((part.get("test", np.array([], int)) == tested).all() for part in parts)
    assert sorted(np.concatenate([part["val"] for part in parts])) == sorted(set(range(n)) - set(tested.tolist()))
    for part in parts:
        assert sorted(np.concatenate(list(part.values()))) == list(range(n))
    counts = np.array([np.bincount(classes[part["val"]], minlength=4) for part in parts])
    assert (counts.max(0) - counts.min(0)).max() <= 1


@given(
    groups=st.lists(st.integers(0, 9), min_size=20, max_size=60),
    count=st.none() | st.integers(2, 3),
    seed=st.integers(0, 99),
)
def test_no_split_cuts_a_group(groups: Any, count: Any, seed: int) -> None:
    numbers = np.unique(groups, return_inverse=True)[1]
    assume(numbers.max() >= 5)
    folds = [None] if count is None else [Fold(k, count) for k in range(count)]
    parts = [split_rows(len(groups), {"val": 0.2, "test": 0.2}, seed, groups=numbers, fold=fold) for fold in folds]
    for part in parts:
        assert sorted(np.concatenate(list(part.values()))) == list(range(len(groups)))
        found = [set(numbers[rows].tolist()) for rows in part.values()]
        assert len(found) == 3
        assert sum(map(len, found)) == len(set.union(*found))
    if count:
        judged = [set(numbers[part["val"]].tolist()) for part in parts]
        left = numbers.max() + 1 - len(set(numbers[parts[0]["test"]].tolist()))
        assert sum(map(len, judged)) == len(set.union(*judged)) == left


def test_more_folds_than_samples_or_groups() -> None:
    with pytest.raises(ConfigError, match="at most 3, the number of samples"):
        split_rows(3, {}, 0, fold=Fold(0, 4))
    with pytest.raises(ConfigError, match="at most 2, the number of groups"):
        split_rows(6, {}, 0, groups=np.array([0, 0, 0, 1, 1, 1]), fold=Fold(0, 3))
    with pytest.raises(ConfigError, match="null, because there is only 1 group outside the test split"):
        split_rows(6, {}, 0, groups=np.zeros(6, int), fold=Fold(0, 2))
    with pytest.raises(ConfigError, match="that leaves training groups: the data has 1 group,"):
        split_rows(6, {"val": 0.2}, 0, groups=np.zeros(6, int))
