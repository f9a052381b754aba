"""Mixup and CutMix, batch augmentation on the device for a `data_preprocessor`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from trainyard._torch_internals import standard_gamma
from trainyard.batch import TARGET_KEYS
from trainyard.checks import integer, is_number, number
from trainyard.errors import ConfigError, TrainyardError, counted
from trainyard.models.base import modules


class BatchMix(nn.Module, ABC):
    """Mixes each sample of a training batch with the previous one; in evaluation mode, batches are unchanged.

    A batch is a tuple or list `(x, y)`, or a mapping of an input and a target. Classes `[B]` become class probabilities
    `[B, num_classes]`, as for `torch.nn.CrossEntropyLoss`; a target that already consists of class probabilities is
    mixed directly. All computations are tensor operations on the device of the batch, with the generator of the device.
    There is no synchronization, and each member of a stack draws its own numbers.

    Args:
        num_classes: the number of classes in the data.
        alpha: the fraction that a sample keeps is drawn from Beta(alpha, alpha), once per batch. Above 0; a
            smaller alpha gives fractions closer to 0 or 1.
        probability: the probability that a batch is mixed.
        label_smoothing: the fraction of each target that is spread evenly over the classes, for all batches; in [0, 1).
    """

    def __init__(
        self, num_classes: int, alpha: float = 1.0, probability: float = 1.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.num_classes = integer("num_classes", num_classes, at_least=1)
        self.alpha = number("alpha", alpha, above=0)
        self.probability = number("probability", probability, at_least=0, at_most=1)
        self.label_smoothing = number("label_smoothing", label_smoothing, at_least=0, below=1)
        self._standard_gamma = standard_gamma()

    @abstractmethod
    def mix(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Mix each of the inputs `[B, ...]` with the previous one.

        Args:
            x: the inputs.
            kept: the fraction of a sample to keep, `[]`, in the default precision; 1 does not change the sample.

        Returns:
            The mixed inputs, and the fraction that was actually kept.
        """

    def forward(self, batch: Any) -> Any:
        """Return the batch, mixed in training."""
        if not self.training:
            return batch
        place, to = _places(batch)
        x, y = batch[place], self.shares(batch[to], batch[place])
        # The first of two numbers from Gamma(alpha), divided by their sum, is from Beta(alpha, alpha).
        # torch.distributions draws it by a function that vmap does not support.
        drawn = self._standard_gamma(torch.full((2,), self.alpha, device=x.device))
        kept = drawn[0] / drawn.sum()
        kept = torch.where(torch.rand((), device=x.device) < self.probability, kept, 1.0)
        x, kept = self.mix(x, kept)
        kept = kept.to(y.dtype)
        y = kept * y + (1 - kept) * y.roll(1, 0)
        if isinstance(batch, Mapping):
            return {**batch, place: x, to: y}
        return (x, y)

    def shares(self, y: Tensor, x: Tensor) -> Tensor:
        """Convert classes `[B]` to class probabilities `[B, num_classes]` in the precision of `x`, and smooth them."""
        if not y.is_floating_point():
            if y.ndim != 1:
                raise self._unfit(y)
            dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
            y = (y.unsqueeze(1) == torch.arange(self.num_classes, device=y.device)).to(dtype)
        if y.ndim != 2 or y.shape[1] != self.num_classes:
            raise self._unfit(y)
        return y * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes

    def _unfit(self, y: Tensor) -> TrainyardError:
        return TrainyardError(
            f"{type(self).__name__} needs classes [B], as integers, or class probabilities [B, {self.num_classes}], as "
            f"floats, but the target is {_shape(y)}."
        )

    def extra_repr(self) -> str:
        return f"{self.num_classes}, alpha={self.alpha}, probability={self.probability}"


class Mixup(BatchMix):
    """Replaces each sample and its target with a randomly weighted mean with the previous sample and its target.

    Source: Zhang, Cissé, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", 2018. The paper's alpha is
    0.2 for ImageNet and 1 for CIFAR-10. Batches are in random order, so neighboring samples are random pairs.

    Args: see `BatchMix`. The input `[B, ...]` is floating-point.

    Example:
        >>> x, y = Mixup(num_classes=3)((torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])))
        >>> x.shape, y.shape
        (torch.Size([4, 1, 8, 8]), torch.Size([4, 3]))
    """

    def mix(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        if not x.is_floating_point():
            raise TrainyardError(
                f"Mixup needs floating-point inputs, but the input is {_shape(x)}. Put a DataPreprocessor "
                "before Mixup to convert integers to floats."
            )
        own = kept.to(x.dtype)
        return own * x + (1 - own) * x.roll(1, 0), kept


class CutMix(BatchMix):
    """Replaces a rectangle of each image with the same rectangle of the previous image; targets are mixed by area.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019
    (its alpha is 1). The rectangle is the same for all images of a batch; its center is drawn uniformly, and the part
    outside the image is ignored.

    Args: see `BatchMix`. The input is `[B, ..., H, W]` with any numeric dtype.

    Example:
        >>> x, y = CutMix(num_classes=3, alpha=1.0)((torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])))
        >>> x.shape, y.shape
        (torch.Size([4, 1, 8, 8]), torch.Size([4, 3]))
    """

    def mix(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim < 3:
            raise TrainyardError(f"CutMix needs images [B, ..., H, W], but the input is {_shape(x)}.")
        half = (1 - kept).sqrt() / 2  # of the rectangle's sides, as a fraction of the image's
        rows, columns = (_span(size, half) for size in x.shape[-2:])
        inside = rows.unsqueeze(1) & columns
        return torch.where(inside, x.roll(1, 0), x), 1 - inside.float().mean()


class RandomChoice(nn.Module):
    """Applies one of several preprocessors, drawn for each training batch; in evaluation mode, batches are unchanged.

    All preprocessors are computed and one result is kept, so that the choice needs no synchronization. All results must
    have the same shapes.

    Args:
        choices: modules from a batch to a batch, such as `Mixup` and `CutMix`, as a list or a mapping.
        weights: the relative frequency of each choice, in order; None: equal frequencies.

    Example:
        >>> either = RandomChoice([Mixup(num_classes=3, alpha=0.2), CutMix(num_classes=3)])
        >>> either((torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])))[1].shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        choices: Sequence[nn.Module] | Mapping[str, nn.Module | None],
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.choices = nn.ModuleList(modules("choices", choices))
        count = len(self.choices)
        if not count:
            raise ConfigError("choices", choices, "at least one module")
        given = [1.0] * count if weights is None else weights
        numbers = isinstance(given, Sequence) and all(is_number(each, above=0) for each in given)
        if not numbers or len(given) != count:
            raise ConfigError(
                "weights", weights, f"a list of {counted(count, 'number')} above 0, one for each choice, or null"
            )
        self.bounds = [upto / sum(given) for upto in accumulate(given)][:-1]

    def forward(self, batch: Any) -> Any:
        """Return the batch, in training after one of the choices."""
        if not self.training:
            return batch
        made, *others = [choice(batch) for choice in self.choices]
        drawn = torch.rand((), device=_first(batch).device)
        for bound, other in zip(self.bounds, others, strict=True):
            made = _where(drawn < bound, made, other)
        return made


def _span(size: int, half: Tensor) -> Tensor:
    """Return which of `size` places lie within `half * size` of a random place: `[size]`, bool."""
    places = torch.arange(size, device=half.device)
    reach = (half * size).long()
    middle = torch.randint(size, (), device=half.device)
    return (places >= middle - reach) & (places < middle + reach)


def _places(batch: Any) -> tuple[Any, Any]:
    """Return the keys or indices of the input and the target of a batch."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return 0, 1
    if isinstance(batch, Mapping):
        targets = [key for key in TARGET_KEYS if key in batch]
        inputs = [key for key in batch if key not in TARGET_KEYS]
        if targets and len(inputs) == 1:
            return inputs[0], targets[0]
    raise TrainyardError(
        "Mixup and CutMix need batches of one input and one target: a tuple or list (x, y), or a mapping with "
        f"two entries. In a mapping, the key of the target must be one of {', '.join(TARGET_KEYS)}."
    )


def _first(batch: Any) -> Tensor:
    """Return a tensor of the batch."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    return batch


def _where(chosen: Tensor, one: Any, other: Any) -> Any:
    """Return `one` where `chosen`, else `other`; both are nests of the same form."""
    if isinstance(one, Mapping):
        return {key: _where(chosen, value, other[key]) for key, value in one.items()}
    if isinstance(one, (tuple, list)):
        return type(one)([_where(chosen, *pair) for pair in zip(one, other, strict=True)])
    if not isinstance(one, Tensor):
        return one
    if one.shape != other.shape:
        raise TrainyardError(
            f"The choices of RandomChoice return tensors of different shapes: {_shape(one)} and {_shape(other)}."
        )
    return torch.where(chosen, one, other)


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
