"""Two noisy rings in the plane, a small data set that a linear model cannot learn."""

from __future__ import annotations

import numpy as np
import torch

from trainyard.checks import integer, number, seed_number
from trainyard.data.array_data import ArrayData, input_spec
from trainyard.data.split import fractions, split_rows
from trainyard.rng import generator


class Rings(ArrayData):
    """Points on two rings around the origin, with radius 0.5 (class 0) and 1 (class 1).

    A batch is `(x, y)`: x float32 `[B, 2]`, y int64 `[B]`.

    Args:
        num_samples: the number of points, half of them in each class.
        noise: standard deviation of the noise on each coordinate. With 0.1, a good model has an accuracy of 0.99.
        data_seed: the seed of the points and of the split, independent of the run's seed.
        val_fraction, test_fraction: fractions of the points, stratified by class; 0: the split does not exist.
        batch_size, eval_batch_size, drop_last, workers: see `ArrayData`.

    Raises:
        ConfigError: a value is invalid.
    """

    def __init__(
        self,
        num_samples: int = 2000,
        noise: float = 0.1,
        data_seed: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        drop_last: bool = False,
        workers: int = 0,
    ) -> None:
        n = integer("num_samples", num_samples, at_least=4)
        shares = fractions(val_fraction, test_fraction)
        rng = generator(seed_number("data_seed", data_seed), "rings")
        labels = np.arange(n) % 2
        angle = rng.uniform(0, 2 * np.pi, n)
        points = (0.5 + 0.5 * labels)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        points += rng.normal(0, number("noise", noise, at_least=0), points.shape)
        x, y = torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels)
        rows = split_rows(n, shares, data_seed, labels)
        super().__init__(
            {split: (x[chosen], y[chosen]) for split, chosen in rows.items()},
            {**input_spec((2,)), "num_classes": 2},
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            workers=workers,
        )
