"""Multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from trainyard.checks import boolean, choice, integer, integers, number
from trainyard.models.base import Preprocessor
from trainyard.models.supervised import Supervised

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


class MLP(Supervised):
    """Fully connected layers from `[B, ...]`, flattened to `[B, in_features]`, to logits `[B, num_classes]`.

    The initialization is that of He et al., 2015 ("Delving Deep into Rectifiers"): variance 2 / fan-in, biases 0.

    Args:
        in_features: numbers per sample.
        num_classes: logits per sample.
        hidden: the widths of the hidden layers; `[]`: a linear classifier.
        activation: the name of the function between the layers (see `ACTIVATIONS`).
        dropout: the fraction of hidden units that is dropped in training, in [0, 1).
        batch_norm: batch normalization before each activation.
        loss: see `Supervised`.
        data_preprocessor: see `BaseModel`.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        loss: Callable[[Any, Any], Tensor] | None = None,
        data_preprocessor: Preprocessor = None,
    ) -> None:
        width = integer("in_features", in_features, at_least=1)
        num_classes = integer("num_classes", num_classes, at_least=1)
        act = ACTIVATIONS[choice("activation", activation, ACTIVATIONS)]
        dropout = number("dropout", dropout, at_least=0, below=1)
        batch_norm = boolean("batch_norm", batch_norm)
        layers: list[nn.Module] = [nn.Flatten()]
        for size in integers("hidden", hidden, at_least=1):
            layers.append(nn.Linear(width, size, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(size))
            layers.append(act())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            width = size
        layers.append(nn.Linear(width, num_classes))
        super().__init__(nn.Sequential(*layers), loss, data_preprocessor)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
