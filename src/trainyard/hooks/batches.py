"""What hooks ask of a batch that they put through the model themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trainyard.data import Loader


def of_first_member(batch: Any, loader: Loader) -> Any:
    """The part of a batch that is the first member's, where the loader serves each of a fused group its own."""
    return tuple(part[0] for part in batch) if getattr(loader, "stacked", False) else batch


def samples(batch: Any) -> int:
    """How many samples one member's batch has: the length of its first tensor; 1 where it has none."""
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    return next((len(part) for part in parts if isinstance(part, Tensor) and part.ndim), 1)
