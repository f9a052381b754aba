"""Augmentation of training batches on the device, for a `data_preprocessor`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainyard.batch import with_changed_input
from trainyard.checks import boolean
from trainyard.errors import ConfigError, TrainyardError

Transform = Callable[[Tensor], Tensor]


class Augment(nn.Module):
    """Applies transforms to the inputs of a training batch; in evaluation mode, batches are unchanged.

    The transforms are functions from a tensor to a tensor, such as those of `torchvision.transforms.v2`. They run on
    the batch's device. Data in memory is already on this device. The input is the first element of a tuple or list, the
    first key of a mapping that is not a target, or a single tensor. The other parts of the batch are unchanged.

    Transforms draw their random numbers on the host. A step with transforms is therefore not captured into a CUDA
    graph, and the jobs of a sweep train one by one, not as a stack.

    Args:
        transforms: the transforms, which are applied in order.
        each: True: apply the transforms to each sample `[C, H, W]` separately, with separate random numbers. False:
            apply them once to the batch `[B, C, H, W]`, which is faster; all samples of the batch then have the same
            random numbers.

    Raises:
        ConfigError: `transforms` is neither a function nor a list of functions.

    Example:
        >>> x, y = Augment([torch.neg])((torch.ones(4, 3, 8, 8), torch.zeros(4)))
        >>> x.shape, float(x.max())
        (torch.Size([4, 3, 8, 8]), -1.0)
    """

    capturable = False

    def __init__(self, transforms: Sequence[Transform] | Transform, each: bool = True) -> None:
        super().__init__()
        given = functions("transforms", transforms, "functions from a tensor to a tensor")
        self.transforms: tuple[Any, ...] = tuple(given)
        self.parts = nn.ModuleList(part for part in given if isinstance(part, nn.Module))  # moved with the model
        self.each = boolean("each", each)

    def forward(self, batch: Any) -> Any:
        """Return the batch, augmented in training."""
        return with_changed_input(batch, self.augmented) if self.training else batch

    def augmented(self, x: Tensor) -> Tensor:
        """Return the inputs `[B, ...]` after the transforms.

        Raises:
            TrainyardError: the results for the samples differ in shape.
        """
        if not self.each:
            return self._transformed(x)
        made = [self._transformed(sample) for sample in x]
        shapes = {tuple(sample.shape) for sample in made}
        if len(shapes) > 1:
            found = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
            raise TrainyardError(
                f"The transforms of Augment return samples of different shapes: {found}. All samples of a batch must "
                "have the same shape. Add a transform that resizes or crops the samples to a fixed size."
            )
        return torch.stack(made)

    def _transformed(self, x: Tensor) -> Tensor:
        for transform in self.transforms:
            x = transform(x)
        return x

    def extra_repr(self) -> str:
        names = ", ".join(getattr(each, "__name__", type(each).__name__) for each in self.transforms)
        return f"{names}, each={self.each}"


def functions(key: str, given: Sequence[Transform] | Transform, accepted: str) -> list[Transform]:
    """Return transforms, or a single one, as a list.

    Args:
        key: the key of the value.
        given: the value.
        accepted: what would be accepted, besides the `_target_`s; for the message.

    Raises:
        ConfigError: a transform is not callable.
    """
    found: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    for function in found:
        if not callable(function):
            hint = (
                "torchvision.transforms.v2 provides such functions: {_target_: "
                "torchvision.transforms.v2.RandomHorizontalFlip}."
            )
            raise ConfigError(key, function, f"{accepted}, or the `_target_`s that build them", hint=hint)
    return found
