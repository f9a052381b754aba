"""Image transforms for test-time augmentation: flip, shift, center crop."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainyard.checks import boolean, integer, number
from trainyard.errors import ConfigError


class ImageTransform(nn.Module):
    """Base class of transforms of images `[B, C, H, W]` of any number type; a subclass defines `transform`."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the transformed images; raise a ConfigError if the input is not images."""
        if not isinstance(images, Tensor) or images.ndim != 4:
            given = f"{list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            accepted = (
                f"transforms that accept the inputs of this data, {given}; {type(self).__name__} needs images [B, "
                "C, H, W]"
            )
            raise ConfigError("hook.test_time_augmentation.transforms", type(self).__name__, accepted)
        return self.transform(images)

    def transform(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class Flip(ImageTransform):
    """Mirrors images left to right, top to bottom, or both.

    Args:
        horizontal: swap left and right.
        vertical: swap top and bottom.
    """

    def __init__(self, horizontal: bool = True, vertical: bool = False) -> None:
        super().__init__()
        wanted = {-1: boolean("horizontal", horizontal), -2: boolean("vertical", vertical)}
        self.dims = [dim for dim, flipped in wanted.items() if flipped]

    def transform(self, images: Tensor) -> Tensor:
        return images.flip(self.dims)


class Shift(ImageTransform):
    """Shifts images by an integer number of pixels; the edge pixels are repeated.

    Args:
        x: pixels to the right; negative: to the left.
        y: pixels down; negative: up.
    """

    def __init__(self, x: int = 0, y: int = 0) -> None:
        super().__init__()
        self.x, self.y = integer("x", x), integer("y", y)

    def transform(self, images: Tensor) -> Tensor:
        for dim, by in ((-1, self.x), (-2, self.y)):
            if by:
                size = images.shape[dim]
                rows = torch.arange(size, device=images.device).sub_(by).clamp_(0, size - 1)
                images = images.index_select(dim, rows)
        return images


class CenterCrop(ImageTransform):
    """Crops the center of images and enlarges it to their size, bilinearly.

    Args:
        share: the fraction of the height and the width that is kept, above 0 and below 1.
    """

    def __init__(self, share: float = 0.875) -> None:
        super().__init__()
        self.share = number("share", share, above=0, below=1)

    def transform(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        h, w = (max(1, round(size * self.share)) for size in (height, width))
        top, left = (height - h) // 2, (width - w) // 2
        cut = images[..., top : top + h, left : left + w]
        enlarged = F.interpolate(
            cut if cut.is_floating_point() else cut.float(), (height, width), mode="bilinear", align_corners=False
        )
        return enlarged if cut.is_floating_point() else enlarged.round_().to(cut.dtype)
