"""Samples for the prediction log: selection, and their predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainyard.batch import input_of, samples, target_of
from trainyard.errors import TrainyardError
from trainyard.metrics import ConfusionMatrix
from trainyard.rng import generator

MOST_POINTS = 2000
"""Maximum number of dots in a figure."""
MOST_CLASSES = 200
"""Maximum number of classes of a confusion matrix."""


@dataclass
class Shown:
    """The samples of one member to show, in order, on the CPU.

    Attributes:
        kind: `classes` (targets `[n]`), `tokens` (`[n, T]`) or `numbers` (`[n, D]`).
        index: int64 `[n]`, the samples' numbers in the split.
        inputs: `[n, ...]`, or None if the input is not a tensor.
        target: the target, in the shape of `kind`.
        predicted: like `target`.
        loss: `[n]`: negative log-likelihood (for tokens the mean), or squared error.
        confidence: `[n]`, for `classes`: the probability of the predicted class.
        confusion: `[C, C]`, for `classes`: counts over the entire split; None for more than `MOST_CLASSES` classes.
        samples: the number of samples in the split.
    """

    kind: str
    index: npt.NDArray[Any]
    inputs: npt.NDArray[Any] | None
    target: npt.NDArray[Any]
    predicted: npt.NDArray[Any]
    loss: npt.NDArray[Any]
    confidence: npt.NDArray[Any] | None
    confusion: npt.NDArray[Any] | None
    samples: int

    @property
    def points(self) -> bool:
        """Whether the samples are points in the plane."""
        return self.inputs is not None and self.inputs.shape[1:] == (2,)


def merged(parts: Sequence[Shown], which: str, count: int) -> Shown:
    """Merge the samples that each rank has collected for a member; samples are numbered within their part.

    Args:
        parts: one per rank.
        which, count: see `Gathering`.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    whole: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("index", "inputs", "target", "predicted", "loss", "confidence")
        if getattr(first, name) is not None
    }
    if not (first.points or first.kind == "numbers"):
        rows = np.argsort(
            -np.nan_to_num(whole["loss"], nan=np.inf) if which == "worst" else whole["index"], kind="stable"
        )[:count]
        whole = {name: value[rows] for name, value in whole.items()}
    if first.confusion is not None:
        whole["confusion"] = sum(part.confusion for part in parts if part.confusion is not None)
    return replace(first, **whole, samples=sum(part.samples for part in parts))


class Gathering:
    """Collects, batch by batch, the samples to show; nothing here waits for the device before `finish`.

    For a figure of dots (points in the plane, or numbers), all samples are collected, or `MOST_POINTS` random ones,
    regardless of `which`.

    Args:
        which: `first`, `random` (the same at every evaluation, in every run) or `worst` (those with the highest loss).
        count: the number of samples to show.
        samples: the number of samples that the split states; if None, the first ones are collected for `random` and for
            dots.
        members: K if outputs are `[K, B, ...]`, None if they are `[B, ...]`.
    """

    def __init__(self, which: str, count: int, samples: int | None, members: int | None) -> None:
        self.which = which
        self.count = count
        self.samples = samples
        self.kind: str | None = None
        self.complaint = ""
        self._members = members
        self._confusion = ConfusionMatrix()
        self._confusion.members = members
        self._seen = 0
        self._rows: npt.NDArray[np.int64] | None = None
        self._parts: list[dict[str, Tensor]] = []

    def add(self, batch: Any, outputs: Any) -> None:
        """Collect from a batch and the predictions for it. Samples without a target are counted, but not collected."""
        if self.kind is None:
            self._begin(batch, outputs)
        target = None if self.kind is None else _target(batch)
        if self.kind is None or target is None:
            self._seen += samples(batch)
            return
        x, target = input_of(batch), target.to(outputs.device)
        if self.kind == "classes" and outputs.shape[-1] <= MOST_CLASSES:
            self._confusion.process(batch, outputs)
        every = outputs if self._members is not None else outputs.unsqueeze(0)
        first, self._seen = self._seen, self._seen + len(target)
        if self._rows is None:
            self._keep_worst(x, target, every, first)
        else:
            rows = self._rows[(self._rows >= first) & (self._rows < self._seen)] - first
            if len(rows):
                chosen = torch.from_numpy(rows).to(outputs.device)
                found = _measured(self.kind, every[:, chosen], target[chosen])
                index = (chosen + first).expand(len(every), -1)
                self._parts.append(_record(x, target, chosen.expand(len(every), -1)) | {"index": index, **found})

    def finish(self) -> list[Shown]:
        """Return the samples of each member."""
        if self.kind is None or not self._parts:
            return []
        whole = {name: torch.cat([part[name] for part in self._parts], 1).cpu() for name in self._parts[0]}
        confusion = self._confusion.compute().cpu() if self._confusion.state else None
        shown = []
        for k in range(self._members or 1):
            values: dict[str, Any] = {
                name: (tensor[k].float() if tensor.is_floating_point() else tensor[k]).numpy()
                for name, tensor in whole.items()
            }
            counts = None if confusion is None else confusion.view(-1, *confusion.shape[-2:])[k].numpy()
            optional = {name: values.pop(name, None) for name in ("inputs", "confidence")}
            shown.append(Shown(self.kind, **values, **optional, confusion=counts, samples=self._seen))
        return shown

    def _begin(self, batch: Any, outputs: Any) -> None:
        x = input_of(batch)
        self.kind = _kind(batch, outputs, self._members is not None)
        if self.kind is None:
            self.complaint = f"{_shown(outputs)} and {_of_target(batch)}"
            return
        self.complaint = ""
        points = isinstance(x, Tensor) and x.ndim == 2 and x.shape[1] == 2 and self.kind == "classes"
        dots = points or self.kind == "numbers"
        if self.which == "worst" and not dots:
            return
        count = MOST_POINTS if dots else self.count
        if self.samples is None or (self.which == "first" and not dots):
            self._rows = np.arange(count)
        else:
            self._rows = np.sort(generator(0, "prediction_log").permutation(self.samples)[:count])

    def _keep_worst(self, x: Any, target: Tensor, outputs: Tensor, first: int) -> None:
        assert self.kind is not None
        found = _measured(self.kind, outputs, target)
        rows = found["loss"].topk(min(self.count, len(target)), 1).indices
        record = _record(x, target, rows) | {"index": rows + first}
        record |= {name: _at(value, rows) for name, value in found.items()}
        if self._parts:
            record = {name: torch.cat([value, record[name]], 1) for name, value in self._parts[0].items()}
            rows = record["loss"].topk(min(self.count, record["loss"].shape[1]), 1).indices
            record = {name: _at(value, rows) for name, value in record.items()}
        self._parts = [record]


def _target(batch: Any) -> Tensor | None:
    """Return the target of a batch; None if it is missing or no tensor."""
    try:
        target = target_of(batch)
    except TrainyardError:
        return None
    return target if isinstance(target, Tensor) else None


def _kind(batch: Any, outputs: Any, stacked: bool) -> str | None:
    """Return the kind of the predictions; None if they cannot be shown."""
    target = _target(batch)
    if target is None or not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        return None
    shape = outputs.shape[1:] if stacked else outputs.shape
    if target.is_floating_point():
        sizes = {size.numel() // max(1, len(target)) for size in (shape, target.shape)}
        return "numbers" if target.ndim in (1, 2) and shape[:1] == target.shape[:1] and len(sizes) == 1 else None
    if shape[:-1] != target.shape or shape[-1] < 2:
        return None
    return {1: "classes", 2: "tokens"}.get(target.ndim)


def _measured(kind: str, outputs: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the predictions and their loss, `[K, n]`, from outputs `[K, n, ...]` and target `[n, ...]`.

    A target that is not a class (padding) has no loss and is never among the worst.
    """
    if kind == "numbers":
        predicted = outputs.reshape(*outputs.shape[:2], -1)
        return {"predicted": predicted, "loss": (predicted - target.view(len(target), -1)).square().mean(-1)}
    logits = outputs if outputs.dtype == torch.float64 else outputs.float()
    targets = target.expand(len(logits), *target.shape)
    counts = (targets >= 0) & (targets < logits.shape[-1])
    labels = targets.where(counts, -100)
    loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="none")
    predicted = logits.argmax(-1)
    loss = loss.view(targets.shape)
    if kind == "tokens":
        return {"predicted": predicted, "loss": loss.sum(-1) / counts.sum(-1).clamp(min=1)}
    return {"predicted": predicted, "loss": loss, "confidence": logits.softmax(-1).amax(-1)}


def _record(x: Any, target: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """Return input and target of the samples at `rows` `[K, n]`, `[K, n, ...]` each."""
    flat = target.reshape(len(target), -1) if target.is_floating_point() else target
    record = {"target": flat[rows]}
    return record | ({"inputs": x[rows.to(x.device)]} if isinstance(x, Tensor) and len(x) == len(target) else {})


def _at(value: Tensor, rows: Tensor) -> Tensor:
    """Return the entries of `[K, m, ...]` at `rows` `[K, n]`: `[K, n, ...]`."""
    return value[torch.arange(len(rows), device=rows.device).unsqueeze(1).to(value.device), rows.to(value.device)]


def _of_target(batch: Any) -> str:
    try:
        target = target_of(batch)
    except TrainyardError:
        return "the batches have no target"
    return f"the targets are {_shown(target)}"


def _shown(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"
