"""Residual network for small images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from trainyard.checks import integer
from trainyard.errors import ConfigError
from trainyard.models.base import Preprocessor
from trainyard.models.supervised import Supervised


class ResNet(Supervised):
    """The CIFAR-10 residual network of He et al., 2015 ("Deep Residual Learning for Image Recognition", section 4.2).

    Three stages of `(depth - 2) / 6` blocks with `width`, `2 * width` and `4 * width` channels, where the second and
    third stage halve the resolution, and identity shortcuts without parameters (the paper's option A). Maps images
    `[B, in_channels, H, W]` of at least 4x4 pixels to logits `[B, num_classes]`.

    Args:
        in_channels: channels of the image.
        num_classes: logits per image.
        depth: layers with weights, 6n + 2: 8, 14, 20, 32, 44, 56, 110 ...
        width: channels of the first stage; 16 in the paper.
        loss: see `Supervised`.
        data_preprocessor: see `BaseModel`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        depth: int = 20,
        width: int = 16,
        loss: Callable[[Any, Any], Tensor] | None = None,
        data_preprocessor: Preprocessor = None,
    ) -> None:
        in_channels = integer("in_channels", in_channels, at_least=1)
        num_classes = integer("num_classes", num_classes, at_least=1)
        width = integer("width", width, at_least=1)
        blocks, rest = divmod(integer("depth", depth, at_least=1) - 2, 6)
        if rest or blocks < 1:
            below = 6 * blocks + 2
            near = f"{below} or {below + 6}" if blocks >= 1 else "8"
            raise ConfigError("depth", depth, f"6n + 2 with n >= 1; nearest: {near}")

        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        for stage in range(3):
            for block in range(blocks):
                halve = stage > 0 and block == 0
                size = width * 2**stage
                layers.append(BasicBlock(size // 2 if halve else size, size, stride=2 if halve else 1))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, num_classes)]
        super().__init__(nn.Sequential(*layers), loss, data_preprocessor)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: `[B, in, H, W]` to `[B, out, H / stride, W / stride]`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.widen = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Add the residual to the input (subsampled and padded with zero channels where the shape changes)."""
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.widen > 0:
            x = F.pad(x, (0, 0, 0, 0, 0, self.widen))
        return F.relu(out + x)
