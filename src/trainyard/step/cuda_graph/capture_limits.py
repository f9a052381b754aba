"""Limits of capture: how many shapes of batches, and how many captures in a row that have not paid off."""

from __future__ import annotations

from collections.abc import Hashable

SHAPES = 8
"""Maximum number of batch shapes that are captured."""
FEW = 20
"""Number of replays below which a capture has not paid off."""
HASTY = 3
"""Number of captures in a row that have not paid off, after which there are no more."""


class CaptureLimits:
    """Counts of what one kind of work has captured.

    Attributes:
        replays: since the graphs were last dropped for a change.
    """

    def __init__(self) -> None:
        self.replays = 0
        self._hasty = 0
        self._shapes: set[Hashable] = set()

    def refusal(self, shape: Hashable | None) -> str | None:
        """Return why batches are not captured, given the next one's shape (see `signature_of`); None if they are."""
        if shape is None:
            return "a batch contains something other than tensors on the device"
        self._shapes.add(shape)
        return f"the batches have more than {SHAPES} shapes" if len(self._shapes) > SHAPES else None

    def forget_shapes(self) -> None:
        """Allow as many shapes again."""
        self._shapes.clear()

    def dropped(self) -> bool:
        """Count a drop of the graphs for a change; return whether that was too often before they had paid off."""
        self._hasty = self._hasty + 1 if self.replays < FEW else 0
        self.replays = 0
        return self._hasty >= HASTY

    def pardon(self) -> None:
        """Forget the captures that have not paid off, after what changed was left out of the graphs."""
        self._hasty = 0
