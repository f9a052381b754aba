"""Snapshot: the values of the parts of a training, which can be restored in place."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainyard.step.clip import NoClip
from trainyard.step.group import GroupWeights
from trainyard.step.precision import Precision
from trainyard.step.step import Step

_OPENED = (nn.Module, Optimizer, Step, Precision, NoClip, GroupWeights, torch.amp.GradScaler)
"""Objects whose attributes are included."""


class Snapshot:
    """Values of parts and of everything that they contain: tensors, gradients, numbers, containers, generators.

    `restore` restores them in place: tensors and containers stay the same objects at the same addresses. Only the
    attributes of objects of torch and of Trainyard's steps are included. Values on a GPU are kept in main memory.

    Args:
        *parts: modules, optimizers, steps, or containers of them.
    """

    def __init__(self, *parts: Any) -> None:
        self._seen: dict[int, Any] = {}  # the objects, so that no other gets an id of theirs
        self._undo: list[Callable[[], object]] = []
        waiting = list(parts)
        while waiting:
            value = waiting.pop()
            if isinstance(value, str | int | float | None) or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            waiting += self._take(value)

    def restore(self) -> None:
        """Restore all values."""
        with torch.no_grad():
            for undo in self._undo:
                undo()

    def _take(self, value: Any) -> list[Any]:
        """Record how to restore a value, and return its contents."""
        if isinstance(value, Tensor):
            return self._take_tensor(value)
        if isinstance(value, dict):
            before = dict(value)
            self._undo.append(partial(_refill, value, before))
            return list(before.values())
        if isinstance(value, list | deque):
            entries = list(value)
            self._undo.append(partial(_refill_sequence, value, entries))
            return entries
        if isinstance(value, set):
            self._undo.append(partial(_refill_set, value, set(value)))
            return []
        if isinstance(value, tuple):
            return list(value)
        if isinstance(value, np.ndarray):
            if value.flags.writeable:
                self._undo.append(partial(np.copyto, value, value.copy()))
            return []
        if isinstance(value, torch.Generator):
            self._undo.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._undo.append(partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.Generator):
            bits: Any = value.bit_generator
            self._undo.append(partial(setattr, bits, "state", bits.state))
        return [vars(value)] if isinstance(value, _OPENED) else []

    def _take_tensor(self, tensor: Tensor) -> list[Any]:
        if not tensor.is_leaf or tensor.is_inference():
            return []
        try:
            values = tensor.detach()
        except RuntimeError:  # of a `vmap` that has ended, as some layers keep: the next forward makes it anew
            return []
        grad = tensor.grad
        self._undo.append(partial(_set_attributes, tensor, grad, tensor.requires_grad))
        if tensor.layout is torch.strided and not tensor.is_meta and not _overlaps(tensor):
            self._undo.append(partial(values.copy_, values.to("cpu", copy=True)))
        return [] if grad is None else [grad]


def _overlaps(tensor: Tensor) -> bool:
    """Return whether several elements share memory, to which torch does not write."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _refill(value: dict[Any, Any], before: dict[Any, Any]) -> None:
    same = len(value) == len(before) and all(
        key is own and entry is old for (key, entry), (own, old) in zip(value.items(), before.items(), strict=True)
    )
    if not same:
        value.clear()
        value.update(before)


def _refill_sequence(value: list[Any] | deque[Any], before: list[Any]) -> None:
    value.clear()
    value.extend(before)


def _refill_set(value: set[Any], before: set[Any]) -> None:
    value.clear()
    value.update(before)


def _set_attributes(tensor: Tensor, grad: Tensor | None, requires_grad: bool) -> None:
    tensor.requires_grad_(requires_grad)
    tensor.grad = grad
