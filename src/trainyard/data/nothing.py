"""Loader of a run without data."""

from __future__ import annotations

from collections.abc import Iterator

from trainyard.data.base import Batch


class NoLoader:
    """Yields no batches and states no length; a training loop that creates its own batches never reads it."""

    batch_size = 1

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yield nothing."""
        return iter(())
