"""Generative adversarial network: two nets, each with its own optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainyard.checks import choice, integer, integers, number
from trainyard.models.base import MODES, BaseModel, Preprocessor
from trainyard.models.mlp import ACTIVATIONS


class GAN(BaseModel):
    """A generator of points, and a discriminator between generated and real points, both conditioned on the class.

    Both are fully connected, and receive the class as one-hot numbers in addition to their input. The losses are
    non-saturating, with the gradient penalty R1 on the data.

    Sources: Goodfellow et al., Generative Adversarial Nets, 2014; Mirza and Osindero, Conditional Generative
    Adversarial Nets, 2014; Mescheder et al., Which Training Methods for GANs do actually Converge?, 2018 (R1).

    Mode "predict" gives a generated point `[B, in_features]` for each class of the batch `(x, y)`; mode "tensor" gives
    the same.

    Args:
        in_features: numbers per point.
        num_classes: the number of classes in the data.
        latent: the number of random inputs of the generator per point.
        hidden: widths of the hidden layers, in both nets.
        activation: the name of the function between the layers.
        r1: the weight of the gradient penalty; 0 disables it.
        data_preprocessor: see `BaseModel`.
    """

    optimizer_groups = {"discriminator": "discriminator", "generator": "generator"}  # noqa: RUF012 - never changed

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        latent: int = 8,
        hidden: Sequence[int] = (64, 64),
        activation: str = "leaky_relu",
        r1: float = 0.1,
        data_preprocessor: Preprocessor = None,
    ) -> None:
        super().__init__(data_preprocessor)
        features = integer("in_features", in_features, at_least=1)
        self.num_classes = integer("num_classes", num_classes, at_least=1)
        self.latent = integer("latent", latent, at_least=1)
        self.r1 = number("r1", r1, at_least=0)
        act = ACTIVATIONS[choice("activation", activation, ACTIVATIONS)]
        widths = integers("hidden", hidden, at_least=1)
        self.generator = _mlp([self.latent + self.num_classes, *widths, features], act)
        self.discriminator = _mlp([features + self.num_classes, *widths, 1], act)

    def train_steps(self, batch: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the losses of the discriminator's step, then those of the generator's."""
        x, y = self.preprocess(batch)
        x = x.detach().requires_grad_(self.r1 > 0)
        real = self._judge(x, y)
        fake = self._judge(self.generate(y).detach(), y)
        losses = {"loss": F.softplus(-real).mean() + F.softplus(fake).mean()}
        if self.r1 > 0:
            (slope,) = torch.autograd.grad(real.sum(), x, create_graph=True)
            losses["loss_r1"] = self.r1 / 2 * slope.square().sum(1).mean()
        yield "discriminator", losses
        yield "generator", {"loss": F.softplus(-self._judge(self.generate(y), y)).mean()}

    def generate(self, y: Tensor) -> Tensor:
        """Return a point `[B, in_features]` of each class in `y`, `[B]`."""
        one_hot = F.one_hot(y, self.num_classes).to(next(self.generator.parameters()).dtype)
        noise = torch.randn(len(y), self.latent, device=y.device, dtype=one_hot.dtype)
        points: Tensor = self.generator(torch.cat([noise, one_hot], 1))
        return points

    def forward(self, x: Tensor, y: Tensor, mode: str = "tensor") -> Tensor:  # type: ignore[override]
        """Return generated points; the losses come from `train_steps`."""
        if mode not in MODES or mode == "loss":
            raise ValueError(
                f"mode {mode!r} is invalid. Expected predict or tensor; train_steps of a GAN returns its losses."
            )
        return self.generate(y)

    def _judge(self, x: Tensor, y: Tensor) -> Tensor:
        """Return logits `[B, 1]` for whether `x` is from the data."""
        logits: Tensor = self.discriminator(torch.cat([x, F.one_hot(y, self.num_classes).to(x.dtype)], 1))
        return logits


def _mlp(widths: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), activation()]
    return nn.Sequential(*layers[:-1])
