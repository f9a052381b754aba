"""Supervised model from any network and loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from trainyard._torch_internals import compiled_from
from trainyard.batch import ITEMS, aligned, no_target, split_target
from trainyard.checks import integer
from trainyard.errors import ConfigError, TrainyardError
from trainyard.models.base import MODES, BaseModel, Preprocessor

OWN_TARGET = "labels"
"""The argument from which a network computes its own loss: that of transformers."""
IGNORED = -100
"""The label that torch's losses, and those of transformers, ignore."""


class Supervised(BaseModel):
    """Turns an `nn.Module` of any library into a model for the Runner.

    In a tuple, the last element is the target, and the other elements are passed to the network. In a mapping, the
    target has the key `target`, `targets`, `label`, `labels` or `y`, and the other entries are passed to the network by
    name. If there is only one other entry, it is passed as the first argument. For predictions, the target can be
    missing; a single tensor is an input. Regression targets `[B]` match outputs `[B, 1]` and vice versa.

    A network that computes its own loss, such as a model of transformers, receives the `labels` of a mapping, unless
    `loss` is given. Its output then has `loss`. If an output has `logits`, the loss and the metrics use the logits.

    Args:
        net: the network; the loss and the metrics receive its output.
        loss: `loss(output, target)` -> scalar. None: `torch.nn.CrossEntropyLoss()`, for logits `[B, num_classes]` and
            classes `[B]`.
        data_preprocessor: see `BaseModel`.
        ignore_index: the target that the loss ignores (padding), equal to the loss's own `ignore_index`. Batches are
            then weighted by the number of other targets (`num_items`). None: batches are weighted by the number of
            samples.

    Example:
        >>> import torch
        >>> model = Supervised(nn.Linear(4, 3))
        >>> model.val_step((torch.ones(2, 4), torch.tensor([0, 2]))).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Any, Any], Tensor] | None = None,
        data_preprocessor: Preprocessor = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(data_preprocessor)
        self.ignore_index = None if ignore_index is None else integer("ignore_index", ignore_index)
        if not isinstance(net, nn.Module):
            raise ConfigError("net", net, "a torch.nn.Module, or a `_target_` that builds one")
        if loss is not None and not callable(loss):
            accepted = "a function loss(output, target), a `_target_` that builds one, or null for the default loss"
            raise ConfigError("loss", loss, accepted)
        self.net = net
        given = loss
        if loss is None:
            loss = nn.CrossEntropyLoss() if ignore_index is None else nn.CrossEntropyLoss(ignore_index=ignore_index)
        own = getattr(loss, "ignore_index", ignore_index)
        if ignore_index is not None and own != ignore_index:
            raise ConfigError("ignore_index", ignore_index, f"{own}, which is the ignore_index of the loss")
        self.loss = loss
        self.has_own_loss = given is None and takes(net, OWN_TARGET)

    def forward(self, *args: Any, mode: str = "tensor", **kwargs: Any) -> Any:
        """Return `{"loss": scalar}`, with `num_items` if targets are ignored, or the network's output."""
        if self.has_own_loss and OWN_TARGET in kwargs:
            return self.by_own_loss(kwargs, mode)
        inputs, named, target = split_target(args, kwargs)
        output = self.net(*inputs, **named)
        if mode == "loss":
            if target is None:
                raise no_target(kwargs or args)
            read = logits_of(output)
            losses = {"loss": self.loss(read, aligned(target, read))}
            return losses if self.ignore_index is None else losses | {ITEMS: (target != self.ignore_index).sum()}
        return _in_mode(output, mode)

    def by_own_loss(self, batch: Mapping[str, Any], mode: str) -> Any:
        """Return the losses or the output for a batch with `labels`, from a network that computes its own loss.

        Raises:
            TrainyardError: the output has no `loss`.
        """
        output = self.net(**batch)
        if mode != "loss":
            return _in_mode(output, mode)
        loss = getattr(output, "loss", None)
        if loss is None:
            raise TrainyardError(
                f"{type(self.net).__name__} takes {OWN_TARGET!r}, but returned {_described(output)} instead of "
                "an object with the attribute `loss`. Set the loss of Supervised (model.loss) to a function "
                "loss(output, target)."
            )
        labels = batch[OWN_TARGET]
        each = isinstance(labels, Tensor) and labels.ndim > 1 and not labels.is_floating_point()
        return {"loss": loss} | ({ITEMS: (labels != IGNORED).sum()} if each else {})


def _in_mode(output: Any, mode: str) -> Any:
    if mode not in MODES:
        raise ConfigError("mode", mode, f"one of {', '.join(MODES)}", options=MODES)
    return logits_of(output) if mode == "predict" else output


def logits_of(output: Any) -> Any:
    """Return the `logits` of an output that has them, like those of transformers, or the output itself."""
    return output if isinstance(output, Tensor) else getattr(output, "logits", output)


def _described(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(str, output)) or 'no entries'}"
    return f"a {type(output).__name__}" + (f" {list(output.shape)}" if isinstance(output, Tensor) else "")


def takes(module: nn.Module, argument: str) -> bool:
    """Return whether a module's `forward` has an argument of this name."""
    try:
        return argument in inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # a scripted forward has no Python signature
        return False


def has_mode_contract(module: nn.Module) -> bool:
    """Return whether the module's `forward` takes `mode`; other modules must be wrapped in `Supervised`.

    For wrappers that pass on all arguments (DDP, `torch.compile`), the wrapped module is examined.
    """
    inner = compiled_from(module)
    if inner is None and isinstance(module, nn.parallel.DistributedDataParallel):
        inner = module.module
    if isinstance(inner, nn.Module):
        return has_mode_contract(inner)
    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # a scripted forward has no Python signature
        return False
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return "mode" in parameters and parameters["mode"].kind in kinds
