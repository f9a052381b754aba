"""Session between two ends: numbers messages, so that each arrives once and in order even if connections break."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Session:
    """Session of one end with the other.

    Attributes:
        received: the number of the last message that has arrived; they count from 1.
        waiting: the numbers and contents of messages that are not acknowledged, in order.
        sent: the number of them that were sent on the current connection.
    """

    received: int = 0
    waiting: deque[tuple[int, bytes]] = field(default_factory=deque)
    sent: int = 0
    _last: int = 0

    def put(self, content: bytes) -> None:
        """Add a message to send."""
        self._last += 1
        self.waiting.append((self._last, content))

    def next(self) -> tuple[int, bytes] | None:
        """Return the next message to send on this connection; None if there is none."""
        if self.sent >= len(self.waiting):
            return None
        self.sent += 1
        return self.waiting[self.sent - 1]

    def acknowledged(self, upto: int) -> None:
        """Record that the other end has all messages up to a number."""
        while self.waiting and self.waiting[0][0] <= upto:
            self.waiting.popleft()
            self.sent = max(0, self.sent - 1)

    def connected(self, received: int) -> None:
        """Begin a new connection to an end that has all messages up to a number."""
        self.acknowledged(received)
        self.sent = 0

    def take(self, number: int) -> bool:
        """Return whether an arriving message is the next one; a message that has already arrived is not.

        Raises:
            ValueError: messages before it have not arrived.
        """
        if number <= self.received:
            return False
        if number != self.received + 1:
            raise ValueError(f"message {number} arrived directly after message {self.received}")
        self.received = number
        return True
