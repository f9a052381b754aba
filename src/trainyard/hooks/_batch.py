"""Parts of a batch: its input, and the first member's part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainyard.batch import TARGET_KEYS
from trainyard.data import Loader
from trainyard.data.transfer import apply


def input_of(batch: Any) -> Any:
    """Return the first element of a tuple or list, the first input of a mapping, or the tensor itself.

    None if there is none.
    """
    if isinstance(batch, Mapping):
        return batch.get(_name(batch))
    if isinstance(batch, tuple | list):
        return batch[0] if batch else None
    return batch


def with_input(batch: Any, value: Any) -> Any:
    """Return the batch with another input; all else is shared."""
    if isinstance(batch, Mapping):
        return {**batch, _name(batch): value}
    if isinstance(batch, tuple | list):
        return (value, *batch[1:])
    return value


def of_first_member(batch: Any, loader: Loader) -> Any:
    """Return the first member's part of a batch, if the loader serves each member its own."""
    return apply(lambda leaf: leaf[0], batch) if getattr(loader, "stacked", False) else batch


def _name(batch: Mapping[Any, Any]) -> Any:
    return next((key for key in batch if key not in TARGET_KEYS), None)
