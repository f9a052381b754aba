"""Port of transports: messages between the head of a sweep and its agents."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from types import TracebackType
from typing import Any, Self

HEAD = "head"
"""Name of the head, as its agents know it."""
BEAT = 1.0
"""Seconds after which an end that has nothing to say shows that it lives."""


class TransportError(Exception):
    """The link is over for good; the message says why, for people."""


@dataclass(frozen=True)
class Received:
    """Message of a peer.

    Attributes:
        peer: its name.
        message: a list of values that JSON has.
        payload: bytes that go with it. Whoever asked for them knows what they are.
    """

    peer: str
    message: list[Any]
    payload: bytes = b""


class Transport(ABC):
    """One end of the links between a head and its agents. A head has many peers, an agent has one: `HEAD`.

    Messages arrive in the order in which they were sent, each once, whatever becomes of connections or of the directory
    meanwhile. An end that is started again has another name: it is another peer.

    Each end works in a thread of its own, so that it shows that it lives however busy the process is.
    """

    def __init__(self) -> None:
        self._received: deque[Received] = deque()
        self._heard: dict[str, float] = {}  # by peer, by time.monotonic
        self._failure: str | None = None
        self._signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()

    @abstractmethod
    def send(self, peer: str, message: list[Any], payload: bytes = b"") -> None:
        """Send a message; return at once. To a peer that is not known it is not sent."""

    @abstractmethod
    def forget(self, peer: str) -> None:
        """End the link to a peer, after what was sent to it has arrived if that takes less than a second or so."""

    @abstractmethod
    def _stop(self, flush: float) -> None:
        """End all links and the thread."""

    def close(self, flush: float = 1.0) -> None:
        """End all links. What was sent is given `flush` seconds to arrive."""
        if self._signal >= 0:
            self._stop(flush)
            os.close(self._signal)
            self._signal = -1

    def receive(self, timeout: float) -> list[Received]:
        """Return what has arrived; wait for it for some seconds at most.

        Raises:
            TransportError: there will be nothing more.
        """
        if not self._received and self._failure is None:
            connection.wait([self._signal], max(0.0, timeout))
        with suppress(BlockingIOError):
            os.eventfd_read(self._signal)
        with self._lock:
            found = list(self._received)
            self._received.clear()
        if not found and self._failure is not None:
            os.eventfd_write(self._signal, 1)
            raise TransportError(self._failure)
        return found

    def fileno(self) -> int:
        """Return a descriptor that can be read when something has arrived."""
        return self._signal

    def silence(self, peer: str) -> float:
        """Return for how many seconds nothing was heard of a peer, by this machine's clock; 0 if it is not known."""
        now = time.monotonic()
        return now - self._heard.get(peer, now)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # -- of the thread -------------------------------------------------------------------------------------------------

    def _arrived(self, received: Received) -> None:
        with self._lock:
            is_first = not self._received
            self._received.append(received)
        if is_first:  # else the owner has been woken, and has not taken them yet
            os.eventfd_write(self._signal, 1)

    def _note_life(self, peer: str) -> None:
        self._heard[peer] = time.monotonic()

    def _fail(self, reason: str) -> None:
        self._failure = reason
        os.eventfd_write(self._signal, 1)
