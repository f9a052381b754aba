"""Explanations of errors that torch raises if model, data, loss and optimizer do not fit together.

The context of an error is read from its traceback: the innermost module that was called, its arguments, the metric and
the line of the user's code. Errors of other kinds keep their traceback.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import trainyard
from trainyard.config.build import AUTO
from trainyard.data.lengths import stated_size
from trainyard.errors import ConfigError, FindingError, TrainyardError, counted
from trainyard.metrics import Metric
from trainyard.optim.identity import optimizers_of
from trainyard.runner.hook import Hook

if TYPE_CHECKING:
    from types import FrameType

    from trainyard.runner.parts import Parts

_KINDS = (RuntimeError, ValueError, IndexError, TypeError)
_TORCH, _OURS = (str(Path(str(package.__file__)).parent) for package in (torch, trainyard))
_DATA = str(Path(_OURS, "data"))
_LONGEST = 300

_OF_FORWARD = re.compile(r"forward\(\) (takes|missing|got)")
_OF_TENSORS = re.compile(
    r"shape|size|dimension|dtype|scalar type|out of bounds|out of range|not implemented for|same type|broadcast", re.I
)
_OF_INDEX = re.compile(r"[Tt]arget (-?\d+) is out of bounds|index out of range in self|device-side assert|Class values")
_OF_TYPES = re.compile(r"dtype|scalar type|not implemented for|same type|type \(", re.I)
_OF_NORM = "Expected more than 1 value per channel"
_NO_GRAPH = "does not require grad and does not have a grad_fn"
_SIZES = ("num_classes", "vocab_size", "out_features")
"""Properties of the data that are numbers of classes."""


@contextmanager
def explained(parts: Parts) -> Iterator[None]:
    """Explain errors that torch raises in the block because model, data, loss and optimizer do not fit together.

    The error of a stack is not changed, because its members are tried alone.

    Args:
        parts: the parts of the run.

    Raises:
        TrainyardError: the explanation, with the key of the config, or the name and the inputs of the layer.
    """
    try:
        yield
    except ConfigError as error:
        scene = Scene(error, parts)
        if scene.raised_by_optimizer:
            raise error.under(scene.optim_key(parts)) from error
        if scene.loading and error.key.partition(".")[0] != "data":
            raise error.under("data") from error
        if scene.module is None or error.key.partition(".")[0] in (*parts.settings, "hook", "metric"):
            raise
        raise error.under("model") from error
    except _KINDS as error:
        other = isinstance(error, torch.OutOfMemoryError) or getattr(parts, "stacked", False)
        told = None if other else _explanation(Scene(error, parts), parts)
        if told is None:
            raise
        raise told from error


class Scene:
    """Information about an error from its traceback.

    Attributes:
        text: the first line of the message.
        module: the innermost module that was called; None outside all modules.
        given: its arguments.
        measured: description of outputs and target of the metric that was processing; empty if there is none.
        name: its name, for messages.
        layer: its name and its settings.
        part: the key of the metric that was processing, or of the hook that was called, or None.
        logits, target: the arguments of a classification loss, or None.
        split: the set that was evaluated, or "train".
        place: the innermost line of code outside torch and Trainyard.
        by_torch: whether torch raised the error.
        clipping: whether gradients were clipped.
        optimizer: the optimizer that stepped (of several optimizers, the one whose turn it was), or None.
        raised_by_optimizer: whether a method of this optimizer raised the error.
        loading: whether the error was raised while Trainyard's code for data read a batch.
    """

    def __init__(self, error: BaseException, parts: Parts) -> None:
        said = str(error).strip().partition("\n")[0]
        self.text = (said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…").rstrip(".: ")
        self.error = error
        self.module: nn.Module | None = None
        self.given: tuple[Any, ...] = ()
        self.measured = ""
        self.part: str | None = None
        self.logits: Tensor | None = None
        self.target: Tensor | None = None
        self.split = "train"
        self.place = ""
        self.optimizer: torch.optim.Optimizer | None = None
        self.by_torch = self.clipping = self.raised_by_optimizer = self.loading = False
        frames = error.__traceback__
        while frames is not None:
            self._see(frames.tb_frame, frames.tb_lineno, parts)
            frames = frames.tb_next
        self.name = "" if self.module is None else name_of(self.module, parts)
        self.layer = self.name and f"{self.name} ({_settings(self.module)})"

    def _see(self, frame: FrameType, line: int, parts: Parts) -> None:
        file, name, values = frame.f_code.co_filename, frame.f_code.co_name, frame.f_locals
        own = values.get("self")
        self.by_torch = file.startswith(_TORCH)
        self.loading |= file.startswith(_DATA)
        if name == "_call_impl" and isinstance(own, nn.Module):
            self.module, self.given = own, (*values.get("args", ()), *values.get("kwargs", {}).values())
        elif isinstance(own, Metric):
            self._name("metric", own, parts.metrics)
            self._measure(values.get("outputs"), values.get("target"))
        elif isinstance(own, Hook):
            self._name("hook", own, parts.dispatch.hooks)
        elif name in ("val_losses", "sanity_check") and file.endswith("workflow.py") and file.startswith(_OURS):
            self.split = values.get("name", self.split)
        elif name in ("sanity_check", "run_set"):
            self.split = getattr(own, "current", self.split)
        self.clipping |= file.endswith("clip.py") and file.startswith(_OURS)
        self.raised_by_optimizer = isinstance(own, torch.optim.Optimizer)
        if isinstance(own, torch.optim.Optimizer):
            self.optimizer = own
        if name in ("cross_entropy", "nll_loss") and isinstance(values.get("target"), Tensor):
            self.logits, self.target = values["input"], values["target"]
        if not self.by_torch and not file.startswith((_OURS, sys.prefix, sys.base_prefix, "<")):
            self.place = f"{Path(file).name}:{line}"

    def _name(self, group: str, own: object, named: Mapping[str, object]) -> None:
        for key, each in named.items():
            if own is each or own is getattr(each, "metric", None):
                self.part = f"{group}.{key}"

    def _measure(self, outputs: object, target: object) -> None:
        if isinstance(outputs, Tensor) and isinstance(target, Tensor):
            self.measured = f" was given the outputs {_shown(outputs)} and the target {_shown(target)}"
            self.target = target

    def optim_key(self, parts: Parts) -> str:
        """Return the key of the optimizer that stepped."""
        several = optimizers_of(parts.optimizer)
        name = next((name for name, each in several.items() if each is self.optimizer), "")
        return f"optim.{name}" if name else "optim"

    @property
    def where(self) -> str:
        """The layer, its inputs, and the error."""
        whose = self.layer or self.part or "the model"
        given = f" was given {_shown(self.given)}" if self.module is not None and self.given else self.measured
        place = f" ({self.place})" if self.place else ""
        raised = f"{type(self.error).__name__}: {self.text}{place}."
        return f"{whose}{given} and raised {raised}" if given else f"{whose} raised {raised}"


def _explanation(scene: Scene, parts: Parts) -> TrainyardError | None:
    if _OF_NORM in scene.text:
        return one_sample(parts, scene.name)
    if _NO_GRAPH in scene.text:
        return _without_graph()
    if "sparse" in scene.text.lower() and not scene.layer:
        return _sparse(scene, parts)
    if _OF_INDEX.search(scene.text):
        return _out_of_range(scene, parts)
    fits_not = scene.by_torch or _OF_TENSORS.search(scene.text) is not None
    if isinstance(scene.error, TypeError):
        fits_not = _OF_FORWARD.search(scene.text) is not None
    in_metric = (scene.part or "").startswith("metric.")
    if (scene.module is None and not in_metric) or not fits_not or scene.optimizer is not None:
        return None
    return _shapes(scene, parts)


# -- kinds -------------------------------------------------------------------------------------------------------------


def _shapes(scene: Scene, parts: Parts) -> TrainyardError:
    """Explain shapes, types and signatures that do not fit."""
    other = _OF_TYPES.search(scene.text) or "device" in scene.text
    suspects = [] if other else _suspects(parts)
    hint = _capital(scene.where)
    for key, given, fact in suspects:
        if len(suspects) == 1 or re.search(rf"\b{given}\b", f"{scene.text} {scene.layer}"):
            return ConfigError(key, given, f"auto, or {fact}, as in the data", hint=hint)
    key = scene.part or "model"
    advice = _types(scene)
    return TrainyardError(f"{key}: error in a batch of {scene.split!r}: {scene.where}{advice}")


def _types(scene: Scene) -> str:
    """Return advice about a type, as an additional sentence; empty if types are not the cause."""
    if not _OF_TYPES.search(scene.text):
        return ""
    in_metric = (scene.part or "").startswith("metric.")
    if in_metric or scene.logits is not None or isinstance(scene.module, nn.CrossEntropyLoss | nn.NLLLoss):
        if scene.target is not None and scene.target.dtype == torch.int64:
            return ""
        numbers = scene.measured and scene.target is not None and scene.target.is_floating_point()
        regression = " For regression targets, use metric=regression." if numbers else ""
        return f" Class targets must be int64 (target.long()).{regression}"
    own = next((p.dtype for p in scene.module.parameters()), None) if scene.module is not None else None
    if own is None:
        return ""
    if isinstance(scene.module, nn.Embedding):
        return " An embedding needs integers (x.long())."
    first = next((each for each in scene.given if isinstance(each, Tensor)), None)
    if first is None or first.dtype == own:
        return ""
    return f" The layer's weights are {_dtype(own)}, so the data must be too (x.to(torch.{_dtype(own)}))."


def _out_of_range(scene: Scene, parts: Parts) -> TrainyardError:
    """Explain a class or an index that is out of range."""
    if "device-side assert" in scene.text:
        return TrainyardError(
            "An index is out of range on the device: a target outside the classes of the loss, or an index outside "
            "an Embedding. Run with device=cpu to find the index. This process can no longer use CUDA."
        )
    if isinstance(scene.module, nn.Embedding) and scene.given and isinstance(scene.given[0], Tensor):
        return no_row(parts, scene.split, scene.layer, scene.module.num_embeddings, scene.given[0])
    if scene.logits is None or scene.target is None:
        return _shapes(scene, parts)
    return no_class(parts, scene.split, _extreme(scene.target, classes_of(scene.logits)), classes_of(scene.logits))


def no_class(parts: Parts, split: str, target: int, classes: int) -> ConfigError:
    """Return the error for a target that is not a class of the loss.

    Args:
        parts: the parts of the run.
        split: the split of the batch.
        target: the number.
        classes: the number of outputs of the model.
    """
    if (wrong := _wrong_count(parts, classes)) is not None:
        return wrong
    stated = {name: fact for name, fact in _facts(parts).items() if name in _SIZES and fact == classes}
    hint = "".join(f" The data defines {name}={fact} (`spec`)." for name, fact in stated.items())
    if target < 0:
        hint += " To ignore targets, set ignore_index of the loss and of the metrics."
    accepted = f"targets from 0 to {classes - 1} in {split!r}: the model has {counted(classes, 'output')}"
    return ConfigError("data", target, accepted, hint=hint.strip())


def no_row(parts: Parts, split: str, layer: str, rows: int, indices: Tensor) -> TrainyardError:
    """Return the error for an index that is not a row of the Embedding `layer`."""
    told = f"{layer} has rows 0 to {rows - 1}, but got index {_extreme(indices, rows)}."
    return _wrong_count(parts, rows) or TrainyardError(f"model and data do not match, in a batch of {split!r}: {told}")


def _wrong_count(parts: Parts, count: int) -> ConfigError | None:
    """Return the error for a number of classes in the model's config that is less than that of the data."""
    for key, given, fact in _suspects(parts):
        if key.rpartition(".")[2] in _SIZES and given == count and given < fact:
            return ConfigError(key, given, f"auto, or {fact}, as in the data")
    return None


def one_sample(parts: Parts, layer: str, samples: int | None = None) -> ConfigError:
    """Return the error for a training batch of one sample, for which BatchNorm cannot compute a variance.

    Args:
        parts: the parts of the run.
        layer: the BatchNorm, for the message.
        samples: the number of samples in an epoch, if known.
    """
    node = parts.settings["data"]
    names = node if isinstance(node, Mapping) else {}
    key = "data.batch_size" if "batch_size" in names else "data"
    size, ranks = stated_size(parts.loader("train")), parts.strategy.world_size
    drop = "data.drop_last=true" if "drop_last" in names else "drop_last=True"
    of_samples = "" if samples is None else f" of the {samples} samples"
    found = f"the last batch{of_samples} has one sample" + (" on a device" if ranks > 1 else "")
    why = f"{_capital(layer or 'BatchNorm')} needs several values to compute a variance"
    if size is None:
        key, accepted = "data", f"batches of at least {2 * ranks} samples"
    elif samples == 1:
        key, accepted = "data", "at least 2 training samples"
    elif size < 2 * ranks:
        accepted = f"at least {2 * ranks}" + (f", because {ranks} devices share each batch" if ranks > 1 else "")
    else:
        why = f"{why}, but {found}"
        single = "a single sample" + (" on a device" if ranks > 1 else "")
        accepted = f"a batch size that does not leave {single}; {drop} drops the last batch"
    alone = size is None or samples == 1
    hint = f"{why}. LayerNorm and GroupNorm also work with one sample."
    if key != "data":
        return ConfigError(key, size, accepted, hint=hint)
    found = "a batch has one sample" if alone else f"the batch size is {size}"
    return FindingError(key, found, accepted, hint=hint)


def _without_graph() -> TrainyardError:
    return TrainyardError(
        "model: the loss does not depend on a trained parameter. Either .detach(), .item(), .data, torch.no_grad(), "
        "argmax or a conversion to NumPy removes the graph of the loss, or all parameters that the loss depends "
        "on are frozen (`freeze`, requires_grad)."
    )


def _sparse(scene: Scene, parts: Parts) -> TrainyardError:
    """Explain sparse gradients that clipping or the optimizer does not support, or dense ones given to SparseAdam."""
    names = [name for name, p in parts.model.named_parameters() if p.grad is not None and p.grad.is_sparse]
    if not names:  # the training check has removed the gradients
        modules = parts.model.named_modules()
        names = [f"{name}.weight" for name, m in modules if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse]
    whose = f"The gradient of {names[0]} is sparse" if names else "A gradient is sparse"
    dense = "an Embedding without sparse=True has dense gradients"
    if scene.clipping:
        key = "clip_grad_value" if parts.settings["clip_grad_norm"] is None else "clip_grad_norm"
        hint = f"{whose}, but torch clips only dense gradients; {dense}."
        return ConfigError(key, parts.settings[key], "null, because the gradients are sparse", hint=hint)
    if scene.optimizer is None:
        key, whose = scene.part or "model", f"{whose[0].lower()}{whose[1:]}"
        return TrainyardError(
            f"{key}: {whose}, which a part of the training step does not support; {dense}. torch says: {scene.text}."
        )
    name, both = type(scene.optimizer).__name__, "SGD or Adagrad without weight decay"
    if isinstance(scene.optimizer, torch.optim.SparseAdam):
        taken = f"an optimizer for dense and sparse gradients: {both}"
        return ConfigError(scene.optim_key(parts), name, taken, hint=f"{name} says: {scene.text}.")
    taken = f"an optimizer for sparse gradients: {both}, or torch.optim.SparseAdam if all gradients are sparse"
    return ConfigError(scene.optim_key(parts), name, taken, hint=f"{whose}: {dense}. {name} says: {scene.text}.")


# -- the messages ------------------------------------------------------------------------------------------------------


def _suspects(parts: Parts) -> list[tuple[str, int, int]]:
    """Return the key, the value and the property for each argument of the model that has the name of a property of the
    data, but another value."""
    facts = _facts(parts)

    def walk(value: Any, key: str) -> Iterator[tuple[str, int, int]]:
        for name, entry in value.items() if isinstance(value, Mapping) else ():
            if isinstance(entry, Mapping):
                yield from walk(entry, f"{key}.{name}")
            elif name in facts and entry != facts[name] and entry != AUTO and type(entry) is type(facts[name]) is int:
                yield f"{key}.{name}", entry, facts[name]

    return list(walk(parts.settings["model"], "model"))


def _facts(parts: Parts) -> Mapping[str, Any]:
    return parts.data.spec if parts.data is not None else {}


def name_of(module: nn.Module, parts: Parts) -> str:
    """Return the name of a module in the model, for messages."""
    name = next((name for name, each in parts.model.named_modules() if each is module), "")
    return f"layer {name}" if name else "the model"


def _settings(module: nn.Module | None) -> str:
    shown = repr(module)
    return type(module).__name__ if "\n" in shown else shown


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{_dtype(value.dtype)} {list(value.shape)}"
    if isinstance(value, tuple | list):
        return ", ".join(map(_shown, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_shown(entry)}" for key, entry in value.items())
    return type(value).__name__


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _extreme(indices: Tensor, count: int) -> int:
    """Return the index that is farthest out of range."""
    low, high = int(indices.min()), int(indices.max())
    return high if high >= count else low


def classes_of(logits: Tensor) -> int:
    """Return the number of classes of logits `[C]` or `[B, C, ...]`."""
    return int(logits.shape[min(1, logits.ndim - 1)])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
