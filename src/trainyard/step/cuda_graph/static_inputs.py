"""Batches as nests of tensors, for which a captured step has memory of its own."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor


def shape_of(batch: Any, tensors: list[Tensor], device: torch.device) -> Hashable | None:
    """What two batches that one graph takes have in common; None where none takes this one.

    Args:
        batch: tensors in a nest of tuples, lists and dicts.
        tensors: filled with them.
        device: where they must be.
    """
    if isinstance(batch, Tensor):
        if batch.device != device or batch.layout is not torch.strided or type(batch) is not Tensor:
            return None
        tensors.append(batch)
        return (*batch.shape, *batch.stride(), batch.dtype)
    if type(batch) is dict:
        parts = [(key, shape_of(value, tensors, device)) for key, value in batch.items()]
        return None if any(part is None for _, part in parts) else (dict, *parts)
    if isinstance(batch, tuple | list):
        shapes = [shape_of(value, tensors, device) for value in batch]
        return None if None in shapes else (type(batch), *shapes)
    return None


def filled(batch: Any, tensors: Iterator[Tensor]) -> Any:
    """A nest like `batch`, of other tensors."""
    if isinstance(batch, Tensor):
        return next(tensors)
    if type(batch) is dict:
        return {key: filled(value, tensors) for key, value in batch.items()}
    parts = [filled(value, tensors) for value in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
