"""Handwritten digits, the data set of scikit-learn."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from trainyard.data.array_data import ArrayData, input_spec
from trainyard.data.split import fold_of, fractions, split_rows
from trainyard.errors import ConfigError


class Digits(ArrayData):
    """Handwritten digits: 1797 images of 8x8 gray pixels, ten classes.

    The data is the test part of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak, 1998), from the file in
    scikit-learn. scikit-learn itself is not imported.

    A batch is `(x, y)`: x float32 `[B, 1, 8, 8]` in [0, 1], y int64 `[B]`.

    Args:
        val_fraction, test_fraction: fractions of the images, stratified by class; 0: the split does not exist.
        split_seed: the seed of the split, independent of the run's seed, so that runs use the same test images.
        folds, fold: for cross-validation, the number of folds and the fold for validation, counted from 0. The other
            folds are for training.
        batch_size, eval_batch_size, drop_last, workers: see `ArrayData`.

    Raises:
        ConfigError: scikit-learn is not installed, or a value is invalid.
    """

    def __init__(
        self,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        drop_last: bool = False,
        workers: int = 0,
    ) -> None:
        shares = fractions(val_fraction, test_fraction)
        table = np.loadtxt(_file(), delimiter=",", dtype=np.float32)  # 64 grey values in 0..16, and the digit
        labels = table[:, 64].astype(np.int64)
        x, y = torch.from_numpy(table[:, :64] / 16).view(-1, 1, 8, 8), torch.from_numpy(labels)
        rows = split_rows(len(table), shares, split_seed, labels, fold=fold_of(folds, fold))
        super().__init__(
            {split: (x[chosen], y[chosen]) for split, chosen in rows.items()},
            {**input_spec((1, 8, 8)), "num_classes": 10},
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            workers=workers,
        )


def _file() -> gzip.GzipFile:
    package = find_spec("sklearn")  # finds, does not import
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return gzip.open(path)
    raise ConfigError(
        "_target_",
        "trainyard.data.Digits",
        "another data set, because scikit-learn, which contains the file of this data set, is not installed",
        hint="Install it with: pip install scikit-learn",
    )
