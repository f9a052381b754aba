"""Seeded splits of the rows of a data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainyard.checks import integer, is_integer, number, seed_number
from trainyard.data.base import SPLITS
from trainyard.errors import ConfigError, counted
from trainyard.rng import generator

Rows = npt.NDArray[np.int64]


def fractions(val_fraction: object, test_fraction: object) -> dict[str, float]:
    """Return the fractions for validation and test; check that each is in [0, 1) and that training rows remain."""
    shares = {
        split: number(f"{split}_fraction", given, at_least=0, below=1)
        for split, given in (("val", val_fraction), ("test", test_fraction))
    }
    if sum(shares.values()) >= 1:
        left = f"less than {1 - shares['test']:g}, because data.test_fraction is {shares['test']:g}"
        raise ConfigError("val_fraction", val_fraction, f"{left} and samples must remain for training")
    return shares


class Fold(NamedTuple):
    """Fold of a cross-validation: fold `number`, from 0, of `count` folds."""

    number: int
    of: int


def fold_of(folds: object, fold: object) -> Fold | None:
    """Return the fold that `folds` and `fold` define; None without cross-validation.

    Raises:
        ConfigError: there are fewer than two folds, the fold is out of range, or `folds` is missing.
    """
    if folds is None:
        if fold != 0:
            hint = "Set data.folds to the number of folds."
            raise ConfigError("fold", fold, "0, because data.folds is null", hint=hint)
        return None
    count = integer("folds", folds, at_least=2, other="null for no cross-validation")
    if not is_integer(fold, at_least=0, at_most=count - 1):
        raise ConfigError("fold", fold, f"an integer from 0 to {count - 1}: there are {count} folds")
    return Fold(int(fold), count)


def check_folds(folds: object, splits: Iterable[str]) -> None:
    """Check that data with cross-validation has no validation set of its own.

    Args:
        folds: the number of folds; None without cross-validation.
        splits: the splits with separate data.

    Raises:
        ConfigError: there are folds and a validation set.
    """
    if folds is not None and any(split.partition("/")[0] == "val" for split in splits):
        raise ConfigError("folds", folds, "null, because the validation set is given separately")


def split_rows(
    n: int,
    shares: dict[str, float],
    seed: int,
    labels: npt.NDArray[np.integer[Any]] | None = None,
    *,
    groups: npt.NDArray[np.integer[Any]] | None = None,
    fold: Fold | None = None,
) -> dict[str, Rows]:
    """Return the row numbers of "train", "val" and "test", each sorted; together, they contain every row of `0..n-1`
    once.

    Args:
        n: the number of rows.
        shares: the fraction of rows of "val" and of "test"; 0 omits the split. The remaining rows are for training.
            Split sizes are these fractions of `n`, rounded, and at least 1.
        seed: the seed of the split.
        labels: `[n]` class numbers `0..C-1`. With labels, the split is stratified: for each class, a split contains its
            fraction, to within two samples.
        groups: `[n]` numbers `0..G-1`. With groups, all rows of a group are in one split. Its size is as close as
            possible to its fraction, and it is not stratified.
        fold: with a fold, "val" is this fold of the rows that are not in "test", and its fraction is not used. "test"
            is the same for all folds. The sizes of folds differ by at most one sample per class; with groups, as little
            as possible.

    Raises:
        ConfigError: there are so few rows (or groups) that no training rows remain or a fold is empty, or `seed` is not
            an integer of at least 0.
    """
    rng = generator(seed_number("split_seed", seed), "split")
    if groups is not None:
        parts = _split_groups(n, shares, rng, groups, fold)
        return {split: np.sort(parts[split]) for split in SPLITS if split in parts}
    rest: Rows = rng.permutation(n)
    if labels is not None:
        rank = rng.permutation(int(labels.max()) + 1)
        rest = rest[np.argsort(rank[labels[rest]], kind="stable")]
    rows: dict[str, Rows] = {}
    for split, share in shares.items():
        if not share or (fold is not None and split == "val"):
            continue
        size = max(1, round(n * share))
        if size >= len(rest):
            raise ConfigError(f"{split}_fraction", share, _leaves("sample", n))
        # Taken at even distances along the rows in order of class, so that each class gives its share.
        taken = np.diff(np.arange(len(rest) + 1) * size // len(rest)) > 0
        rows[split], rest = np.sort(rest[taken]), rest[~taken]
    if fold is not None:
        if fold.of > len(rest):
            raise ConfigError("folds", fold.of, _at_most("sample", len(rest)))
        own = np.arange(len(rest)) % fold.of == fold.number
        rows["val"], rest = np.sort(rest[own]), rest[~own]
    rows["train"] = np.sort(rest)
    return {split: rows[split] for split in SPLITS if split in rows}


def _split_groups(
    n: int, shares: dict[str, float], rng: np.random.Generator, groups: npt.NDArray[np.integer[Any]], fold: Fold | None
) -> dict[str, Rows]:
    sizes = np.bincount(groups)
    rest = rng.permutation(len(sizes))
    chosen: dict[str, npt.NDArray[np.int64]] = {}
    for split, share in shares.items():
        if not share or (fold is not None and split == "val"):
            continue
        # As many of the groups, in drawn order, as come nearest to the size.
        ends = np.cumsum(sizes[rest])
        count = int(np.abs(ends - max(1, round(n * share))).argmin()) + 1
        if count >= len(rest):
            raise ConfigError(f"{split}_fraction", share, _leaves("group", len(sizes)))
        chosen[split], rest = rest[:count], rest[count:]
    if fold is not None:
        if fold.of > len(rest):
            raise ConfigError("folds", fold.of, _at_most("group", len(rest)))
        # Each group, the largest first, goes into the fold that is smallest so far (as in scikit-learn's GroupKFold).
        filled, place = np.zeros(fold.of, np.int64), np.zeros(len(rest), np.int64)
        for index in np.argsort(-sizes[rest], kind="stable"):
            place[index] = int(filled.argmin())
            filled[place[index]] += sizes[rest[index]]
        chosen["val"], rest = rest[place == fold.number], rest[place != fold.number]
    chosen["train"] = rest
    return {split: np.flatnonzero(np.isin(groups, own)) for split, own in chosen.items()}


def _at_most(one: str, count: int) -> str:
    """Describe the accepted numbers of folds for this number of samples or groups outside the test split."""
    if count < 2:
        return f"null, because there is only 1 {one} outside the test split"
    return f"at most {count}, the number of {one}s outside the test split"


def _leaves(one: str, count: int) -> str:
    """Describe the accepted fractions of data with this number of samples or groups."""
    total = counted(count, one)
    return f"0, or a fraction that leaves training {one}s: the data has {total}, and a split has at least 1"
