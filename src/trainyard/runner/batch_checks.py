"""Checks of the data against the model before the training: targets that are not classes, a batch of one sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from trainyard.config.compiling import compile_arguments
from trainyard.data.lengths import exact_length, first_batch, samples_hint
from trainyard.data.tensor_loader import ImageLoader, TensorLoader
from trainyard.data.transfer import to_device
from trainyard.models import Supervised, call
from trainyard.models.transformer import token_cross_entropy
from trainyard.runner.misfit import classes_of, no_class, no_row, one_sample

if TYPE_CHECKING:
    from trainyard.runner.parts import Parts

_AS_THEY_ARE = (TensorLoader, ImageLoader)
"""Loaders whose batches contain the last of their tensors unchanged."""
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@contextmanager
def in_range(parts: Parts, split: str) -> Iterator[None]:
    """Check the classes and indices of a batch of `split` in the block, on CUDA.

    On CUDA, an index out of range is an assertion on the device, after which the process can no longer use it; on other
    devices, torch raises an error that names the index.

    Raises:
        TrainyardError: a target is not a class, or an index is out of range for an Embedding.
    """
    if parts.device.type != "cuda" or compile_arguments(parts.settings["compile"]) is not None:
        yield
        return
    with IndexRanges(parts, split):
        yield


def check_test_step(parts: Parts) -> None:
    """Check that the model has the step that evaluates the test data, which is used only after the training.

    Raises:
        TrainyardError: a LightningModule has no `test_step`.
    """
    require = getattr(parts.model, "require_step", None)
    if require is not None and parts.has_split("test"):
        require("test")


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class IndexRanges(TorchFunctionMode):
    """Mode in which classification losses and embeddings check their indices before they run."""

    def __init__(self, parts: Parts, split: str) -> None:
        super().__init__()
        self._parts = parts
        self._split = split

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in (F.cross_entropy, F.nll_loss):
            logits, target = _first_two(args, named, "input", "target")
            check_targets(self._parts, self._split, target, classes_of(logits), named.get("ignore_index", -100))
        elif func is F.embedding:
            index, weight = _first_two(args, named, "input", "weight")
            if ((index < 0) | (index >= len(weight))).any():
                raise no_row(self._parts, self._split, "an Embedding", len(weight), index)
        return func(*args, **named)


def check_targets(parts: Parts, split: str, target: Tensor, classes: int, ignored: int = -100) -> None:
    """Check that targets are classes.

    Args:
        parts: the parts of the run.
        split: the split, for the message.
        target: a target of any shape; class probabilities (floats) are not checked.
        classes: the number of classes.
        ignored: a target that is ignored.

    Raises:
        ConfigError: a target is not a class.
    """
    if target.dtype not in _INTEGERS or not target.numel():
        return
    wrong = target[((target < 0) | (target >= classes)) & (target != ignored)]
    if wrong.numel():
        raise no_class(parts, split, int(wrong.max()) if int(wrong.max()) >= classes else int(wrong.min()), classes)


def check_resident_targets(parts: Parts, outputs: Any) -> None:
    """Check all targets of sets in memory, for a `Supervised` model with a classification loss.

    Args:
        parts: the parts of the run, for one member.
        outputs: predictions for a batch.

    Raises:
        ConfigError: a target is not a class.
    """
    loss = _classification_loss(parts)
    if loss is None or not isinstance(outputs, Tensor) or outputs.ndim < 2:
        return
    classes = outputs.shape[-1] if loss is token_cross_entropy else classes_of(outputs)
    for split, loader in parts.loaders.items():
        target = _resident_target(loader)
        if target is not None and target.ndim == outputs.ndim - 1:
            check_targets(parts, split, target, classes, getattr(loss, "ignore_index", -100))


def check_training_targets(parts: Parts, device: torch.device) -> None:
    """Check all targets of sets in memory in a run whose validation, if there is one, does not predict.

    Otherwise, the predictions of the validation are used: see `check_resident_targets`.

    Args:
        parts: the parts of the run, for one member.
        device: the device of the model.

    Raises:
        TrainyardError: a target is not a class, or an index is out of range for an Embedding.
    """
    if parts.has_split("val") and not parts.validates_by_loss:
        return
    if _classification_loss(parts) is None or _resident_target(parts.loader("train")) is None:
        return
    if not any(is_lazy(tensor) for tensor in parts.model.parameters()):  # the prediction would initialize it
        check_resident_targets(parts, _prediction(parts, device))


def _classification_loss(parts: Parts) -> Any:
    """Return the loss of a `Supervised` model if it is a classification loss of a run on one device; otherwise None."""
    loss = parts.model.loss if isinstance(parts.model, Supervised) else None
    known = loss is token_cross_entropy or isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)
    return loss if known and parts.strategy.world_size == 1 else None


def _resident_target(loader: Any) -> Tensor | None:
    """Return the targets of a set in memory; None if they are not all known."""
    tensors = loader.tensors if isinstance(loader, TensorLoader) and type(loader) in _AS_THEY_ARE else ()
    return tensors[-1] if len(tensors) > 1 else None


def _prediction(parts: Parts, device: torch.device) -> Any:
    """Return the predictions for the first training batch, in evaluation mode."""
    model = parts.model.eval()
    predict = getattr(model, "val_step", partial(call, model, mode="predict"))
    with torch.no_grad(), device, in_range(parts, "train"):
        return predict(to_device(first_batch(parts.loader("train"), "train"), device))


def check_last_batch(parts: Parts, device: torch.device) -> None:
    """Check that no training batch has only one sample, for which a BatchNorm would have one value per channel.

    This is known before the training if the loader orders the samples itself.

    Args:
        parts: the parts of the run, for one member.
        device: the device of the model.

    Raises:
        ConfigError: a batch has one sample.
    """
    loader = parts.loader("train")
    samples, size = samples_hint(loader), loader.batch_size
    if exact_length(loader) is None or samples is None or parts.strategy.world_size > 1:
        return
    if size > 1 and samples % size != 1:
        return
    model = parts.model.train()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BATCH_NORMS)}
    norms = {name: module for name, module in norms.items() if module.training}
    if not norms:
        return
    alone: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any], None]:
        def of(module: nn.Module, given: Any) -> None:
            if given and given[0].numel() == given[0].shape[0] * given[0].shape[1]:
                alone.append(f"layer {name} ({type(module).__name__})")

        return of

    handles = [module.register_forward_pre_hook(look(name)) for name, module in norms.items()]
    try:
        _prediction(parts, device)
    finally:
        for handle in handles:
            handle.remove()
    if alone:
        raise one_sample(parts, alone[0], samples)


def _first_two(args: Any, named: Any, *names: str) -> Any:
    return [args[index] if index < len(args) else named[name] for index, name in enumerate(names)]
