"""Data preprocessor that normalizes a batch on the device, and stacks images of different sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from trainyard.batch import with_changed_input
from trainyard.checks import boolean, integer, is_number, number
from trainyard.errors import ConfigError, TrainyardError, some


class DataPreprocessor(nn.Module):
    """Normalizes the input of a batch: `(x.float() - mean) / std`. Other parts of the batch are unchanged.

    The input is the first element of a tuple or list, the first key of a mapping that is not a target, or the batch
    itself if it is a tensor. Bytes (`uint8`) can be kept on the device, and this module converts them to floats. A list
    of images `[C, H, W]` of different sizes (`trainyard.data.pseudo_collate`) is padded at the right and the bottom,
    and stacked: `[B, C, H, W]`.

    Args:
        mean: one number, or one number per channel of `[B, C, ...]` (per feature of `[B, F]`), in the units of the
            input.
        std: the same, above 0.
        fitted: whether `mean` and `std` were measured on the training data. Checkpoints then contain both values, and
            loading a checkpoint restores them.
        pad_size_divisor: height and width of images are padded to multiples of this number; 1: only lists are padded.
        pad_value: the value of the padding, after the normalization.

    Example:
        >>> DataPreprocessor(mean=127.5, std=127.5)((torch.tensor([[0, 255]], dtype=torch.uint8), torch.tensor([1])))
        (tensor([[-1.,  1.]]), tensor([1]))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        fitted: bool = False,
        pad_size_divisor: int = 1,
        pad_value: float = 0.0,
    ) -> None:
        super().__init__()
        boolean("fitted", fitted)
        for key, value, above in (("mean", mean, None), ("std", std, 0)):
            numbers = value if isinstance(value, (list, tuple)) else [value]
            if not numbers or not all(is_number(each, above=above) for each in numbers):
                kind = "number" if above is None else f"number above {above}"
                raise ConfigError(key, value, f"a {kind}, or a list of one {kind} per channel")
            self.register_buffer(key, torch.tensor(numbers, dtype=torch.float32), persistent=fitted)
        self.pad_size_divisor = integer("pad_size_divisor", pad_size_divisor, at_least=1)
        self.pad_value = number("pad_value", pad_value)
        if len(self.mean) != len(self.std) and 1 not in (len(self.mean), len(self.std)):
            raise ConfigError("std", std, f"as many numbers as `mean` has ({len(self.mean)}), or one")

    def forward(self, batch: Any) -> Any:
        """Return the batch with its input normalized."""
        return with_changed_input(batch, self.prepare)

    def prepare(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        """Normalize an input, `[B, C, ...]` or a list of images `[C, H, W]`, and pad it.

        Raises:
            TrainyardError: the images of a list differ in more than height and width.
        """
        if not isinstance(x, Tensor):
            return self._stacked([self.normalise(image[None])[0] for image in x])
        x = self.normalise(x)
        return self._padded(x, x.shape[-2:]) if self.pad_size_divisor > 1 and x.ndim > 2 else x

    def _stacked(self, images: Sequence[Tensor]) -> Tensor:
        if len({image.shape[:-2] for image in images}) != 1 or any(image.ndim != 3 for image in images):
            shapes = some(dict.fromkeys(str(list(image.shape)) for image in images), 4)
            raise TrainyardError(
                f"Images [C, H, W] in a batch may differ only in height and width, but their shapes are {shapes}."
            )
        largest = [max(image.shape[axis] for image in images) for axis in (-2, -1)]
        return torch.stack([self._padded(image, largest) for image in images])

    def _padded(self, image: Tensor, size: Sequence[int]) -> Tensor:
        """Return an image or several, padded to `size` `(H, W)` rounded up to the divisor."""
        height, width = (-(-length // self.pad_size_divisor) * self.pad_size_divisor for length in size)
        right, below = width - image.shape[-1], height - image.shape[-2]
        return pad(image, (0, right, 0, below), value=self.pad_value) if right or below else image

    def normalise(self, x: Tensor) -> Tensor:
        """Normalize `x` `[B, C, ...]` with any numeric dtype, and return floats."""
        shape = (-1, *[1] * (x.ndim - 2))
        x = x if x.is_floating_point() else x.float()
        return (x - self.mean.view(shape)) / self.std.view(shape)
