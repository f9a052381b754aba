"""Seeded splits of the rows of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from trainyard.checks import number, seed_number
from trainyard.data.base import SPLITS
from trainyard.errors import ConfigError
from trainyard.rng import generator

Rows = npt.NDArray[np.int64]


def fractions(val_fraction: object, test_fraction: object) -> dict[str, float]:
    """Return the shares of validation and test, after a check that each is in [0, 1) and that training rows remain."""
    shares = {
        split: number(f"{split}_fraction", given, at_least=0, below=1)
        for split, given in (("val", val_fraction), ("test", test_fraction))
    }
    if sum(shares.values()) >= 1:
        raise ConfigError(
            "val_fraction", val_fraction, f"less than {1 - shares['test']:g}, so that with test_fraction some are left"
        )
    return shares


def split_rows(
    n: int, shares: dict[str, float], seed: int, labels: npt.NDArray[np.integer[Any]] | None = None
) -> dict[str, Rows]:
    """Return the row numbers of "train", "val" and "test", each sorted; together they hold every row of `0..n-1` once.

    Args:
        n: rows.
        shares: the fraction of rows of "val" and of "test"; 0 leaves the split out. The rest trains. Split sizes are
            these fractions of `n`, rounded, and at least 1.
        seed: the seed of the split.
        labels: `[n]` class numbers `0..C-1`. With them the split is stratified: for each class, a split holds its
            fraction, to within two samples.

    Raises:
        ConfigError: so few rows that nothing is left to train on, or a `seed` that is no integer of at least 0.
    """
    rng = generator(seed_number("split_seed", seed), "split")
    rest: Rows = rng.permutation(n)
    if labels is not None:
        rank = rng.permutation(int(labels.max()) + 1)
        rest = rest[np.argsort(rank[labels[rest]], kind="stable")]
    rows: dict[str, Rows] = {}
    for split, share in shares.items():
        if not share:
            continue
        size = max(1, round(n * share))
        if size >= len(rest):
            raise ConfigError(f"{split}_fraction", share, f"a fraction that leaves some of the {n} samples to train on")
        # Taken at even distances along the rows in order of class, so that each class gives its share.
        taken = np.diff(np.arange(len(rest) + 1) * size // len(rest)) > 0
        rows[split], rest = np.sort(rest[taken]), rest[~taken]
    rows["train"] = np.sort(rest)
    return {split: rows[split] for split in SPLITS if split in rows}
