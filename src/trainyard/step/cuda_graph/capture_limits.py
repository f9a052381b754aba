"""Limits of capture: the number of batch shapes, and the number of consecutive captures that have not paid off."""

from __future__ import annotations

from collections.abc import Hashable

SHAPES = 8
"""Maximum number of batch shapes that are captured."""
FEW = 20
"""Number of replays below which a capture has not paid off."""
HASTY = 3
"""Number of consecutive captures that have not paid off after which capturing stops."""


class CaptureLimits:
    """Counts of the captures of one kind of work.

    Attributes:
        replays: the number of replays since the graphs were last dropped because of a change.
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
        """Reset the number of captured shapes."""
        self._shapes.clear()

    def dropped(self) -> bool:
        """Count a drop of the graphs because of a change; return whether this has happened too often before they had
        paid off."""
        self._hasty = self._hasty + 1 if self.replays < FEW else 0
        self.replays = 0
        return self._hasty >= HASTY

    def pardon(self) -> None:
        """Forget the captures that have not paid off, after the changing part was removed from the graphs."""
        self._hasty = 0
