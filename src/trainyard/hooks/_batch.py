"""The first member's part of a batch."""

from __future__ import annotations

from typing import Any

from trainyard.data import Loader
from trainyard.data.transfer import apply


def of_first_member(batch: Any, loader: Loader) -> Any:
    """Return the first member's part of a batch, if the loader serves each member its own."""
    return apply(lambda leaf: leaf[0], batch) if getattr(loader, "stacked", False) else batch
