"""Transfer of batches of any structure to the training device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import cache
from typing import Any

import torch

from trainyard.data.base import Batch


def apply(function: Callable[[Any], Any], batch: Batch) -> Batch:
    """Apply `function` to every leaf with a method `to` (tensors, packed sequences, graph batches).

    Tuples, named tuples, lists and mappings keep their type; other leaves are not changed.
    """
    if hasattr(batch, "to"):
        return function(batch)
    if isinstance(batch, Mapping):
        parts = {key: apply(function, value) for key, value in batch.items()}
        if not isinstance(batch, MutableMapping):
            return parts
        moved = copy.copy(batch)  # a copy, because a type may need more than its items to be built (defaultdict)
        moved.update(parts)
        return moved
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(apply(function, part) for part in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(apply(function, part) for part in batch)
    return batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on `device`; the copy does not block if the batch is in pinned memory."""
    return apply(lambda leaf: leaf.to(device, non_blocking=True), batch)


def copy_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on a CUDA `device`: while one is in use, the next is copied on a separate stream."""
    stream = _copy_stream(device)

    def begin(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            moved = apply(lambda leaf: leaf.to(device, non_blocking=True) if _recordable(leaf) else leaf, batch)
            return moved, stream.record_event()

    def arrive(batch: Batch, copied: torch.cuda.Event) -> Batch:
        consumer = torch.cuda.current_stream(device)
        consumer.wait_event(copied)

        def hand_over(leaf: Any) -> Any:
            if not _recordable(leaf):
                return leaf.to(device, non_blocking=True)
            # The memory belongs to the copying stream: it may not be used again while the consumer still reads it.
            leaf.record_stream(consumer)
            return leaf

        return apply(hand_over, batch)

    on_its_way: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        following = begin(batch)
        if on_its_way is not None:
            yield arrive(*on_its_way)
        on_its_way = following
    if on_its_way is not None:
        yield arrive(*on_its_way)


def _recordable(leaf: Any) -> bool:
    """Return whether the leaf has `record_stream`; others are copied on the consumer's stream, when due."""
    return hasattr(leaf, "record_stream")


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which batches are copied to a device.

    There is one stream per device: torch's allocator keeps the freed blocks of each stream separate, so that a new
    stream for each epoch could not reuse the blocks of earlier epochs.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
