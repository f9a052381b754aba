"""Static inputs of a captured step: batches whose tensors stay at the addresses that the graph reads."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor


def signature_of(batch: Any, tensors: list[Tensor], device: torch.device) -> Hashable | None:
    """Return the properties that batches for the same graph must share: structure, shapes, strides and dtypes.

    Args:
        batch: tensors, in tuples, lists and dicts of any depth.
        tensors: a list that is filled with the tensors.
        device: the required device of the tensors.

    Returns:
        None if no graph accepts this batch.
    """
    if isinstance(batch, Tensor):
        if batch.device != device or batch.layout is not torch.strided or type(batch) is not Tensor:
            return None
        tensors.append(batch)
        return (*batch.shape, *batch.stride(), batch.dtype)
    if type(batch) is dict:
        parts = [(key, signature_of(value, tensors, device)) for key, value in batch.items()]
        return None if any(part is None for _, part in parts) else (dict, *parts)
    if isinstance(batch, tuple | list):
        signatures = [signature_of(value, tensors, device) for value in batch]
        return None if None in signatures else (type(batch), *signatures)
    return None


def with_tensors(batch: Any, tensors: Iterator[Tensor]) -> Any:
    """Return a batch of the structure of `batch`, with other tensors."""
    if isinstance(batch, Tensor):
        return next(tensors)
    if type(batch) is dict:
        return {key: with_tensors(value, tensors) for key, value in batch.items()}
    parts = [with_tensors(value, tensors) for value in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
