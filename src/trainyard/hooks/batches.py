"""What hooks ask of a batch that they put through the model themselves."""

from __future__ import annotations

from typing import Any

from trainyard.data import Loader


def of_first_member(batch: Any, loader: Loader) -> Any:
    """The part of a batch that is the first member's, where the loader serves each of a fused group its own."""
    return tuple(part[0] for part in batch) if getattr(loader, "stacked", False) else batch
