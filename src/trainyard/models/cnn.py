"""Small convolutional network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from trainyard.checks import integer, integers, number
from trainyard.models.base import Preprocessor
from trainyard.models.supervised import Supervised


class CNN(Supervised):
    """Stages of 3x3 convolution, batch normalization, ReLU and 2x2 max pooling; the last stage averages over the image.

    Maps images `[B, in_channels, H, W]` of any size to logits `[B, num_classes]`.

    Args:
        in_channels: channels of the image.
        num_classes: logits per image.
        channels: channels of each stage; every stage except the last stage halves the image.
        dropout: the fraction of the averaged features that is dropped in training, in [0, 1).
        loss: see `Supervised`.
        data_preprocessor: see `BaseModel`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int] = (32, 64, 128),
        dropout: float = 0.0,
        loss: Callable[[Any, Any], Tensor] | None = None,
        data_preprocessor: Preprocessor = None,
    ) -> None:
        width = integer("in_channels", in_channels, at_least=1)
        num_classes = integer("num_classes", num_classes, at_least=1)
        dropout = number("dropout", dropout, at_least=0, below=1)
        layers: list[nn.Module] = []
        for size in integers("channels", channels, at_least=1, length=1):
            if layers:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))  # a side of 1 stays 1, so any depth takes any image
            layers += [nn.Conv2d(width, size, 3, padding=1, bias=False), nn.BatchNorm2d(size), nn.ReLU()]
            width = size
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(width, num_classes))
        super().__init__(nn.Sequential(*layers), loss, data_preprocessor)
