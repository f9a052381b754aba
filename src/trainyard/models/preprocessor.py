"""Data preprocessor that normalizes a batch on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainyard.batch import TARGET_KEYS
from trainyard.checks import boolean, is_number
from trainyard.errors import ConfigError


class DataPreprocessor(nn.Module):
    """Normalizes the input of a batch: `(x.float() - mean) / std`. The rest of the batch passes through.

    The input is the first element of a tuple or list, the first key of a mapping that is not a target, or the lone
    tensor itself. Bytes (`uint8`) can thus be kept on the device and become floats here.

    Args:
        mean: one number, or one per channel of `[B, C, ...]` (per feature of `[B, F]`), in the units of the input.
        std: likewise, above 0.
        fitted: whether both were measured on the training data: checkpoints then hold them, and a checkpoint's are used
            wherever it is loaded.

    Example:
        >>> DataPreprocessor(mean=127.5, std=127.5)((torch.tensor([[0, 255]], dtype=torch.uint8), torch.tensor([1])))
        (tensor([[-1.,  1.]]), tensor([1]))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0, fitted: bool = False
    ) -> None:
        super().__init__()
        boolean("fitted", fitted)
        for key, value, above in (("mean", mean, None), ("std", std, 0)):
            numbers = value if isinstance(value, (list, tuple)) else [value]
            if not numbers or not all(is_number(each, above=above) for each in numbers):
                kind = "number" if above is None else f"number above {above}"
                raise ConfigError(key, value, f"a {kind}, or a list of one {kind} per channel")
            self.register_buffer(key, torch.tensor(numbers, dtype=torch.float32), persistent=fitted)
        if len(self.mean) != len(self.std) and 1 not in (len(self.mean), len(self.std)):
            raise ConfigError("std", std, f"as many numbers as `mean` has ({len(self.mean)}), or one")

    def forward(self, batch: Any) -> Any:
        """Return the batch with its input normalized."""
        if isinstance(batch, Mapping):
            name = next((key for key in batch if key not in TARGET_KEYS), None)
            return batch if name is None else {**batch, name: self.normalise(batch[name])}
        if isinstance(batch, (tuple, list)):
            return (self.normalise(batch[0]), *batch[1:])
        return self.normalise(batch)

    def normalise(self, x: Tensor) -> Tensor:
        """Normalize `x` `[B, C, ...]` of any number type, and return floats."""
        shape = (-1, *[1] * (x.ndim - 2))
        x = x if x.is_floating_point() else x.float()
        return (x - self.mean.view(shape)) / self.std.view(shape)
