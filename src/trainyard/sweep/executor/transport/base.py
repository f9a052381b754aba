"""Interface of transports: messages between the head of a sweep and its agents."""

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
"""Name of the head for its agents."""
BEAT = 1.0
"""Seconds without messages after which an end sends a heartbeat."""


class TransportError(Exception):
    """The connection has ended permanently; the message states the reason."""


@dataclass(frozen=True)
class Received:
    """Message from a peer.

    Attributes:
        peer: its name.
        message: a list of JSON values.
        payload: attached bytes that the receiver can interpret.
    """

    peer: str
    message: list[Any]
    payload: bytes = b""


class Transport(ABC):
    """One end of the connections between a head and its agents. A head has many peers; an agent has one peer, `HEAD`.

    Messages arrive in order and exactly once, regardless of failures of connections or of the directory. An end that is
    started again has another name and is another peer.

    Each end has a separate thread, which sends heartbeats even if the process is busy.
    """

    def __init__(self) -> None:
        self._received: deque[Received] = deque()
        self._heard: dict[str, float] = {}  # by peer, by time.monotonic
        self._failure: str | None = None
        self._signal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()

    @abstractmethod
    def send(self, peer: str, message: list[Any], payload: bytes = b"") -> None:
        """Send a message and return immediately. A message to an unknown peer is dropped."""

    @abstractmethod
    def forget(self, peer: str) -> None:
        """End the connection to a peer after sent messages have arrived, but after about a second at the latest."""

    @abstractmethod
    def _stop(self, flush: float) -> None:
        """End all links and the thread."""

    def close(self, flush: float = 1.0) -> None:
        """End all connections. Sent messages have `flush` seconds to arrive."""
        if self._signal >= 0:
            self._stop(flush)
            os.close(self._signal)
            self._signal = -1

    def receive(self, timeout: float) -> list[Received]:
        """Return the messages that have arrived; wait a limited number of seconds for the first message.

        Raises:
            TransportError: no further messages will arrive.
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
        """Return a descriptor that is readable when a message has arrived."""
        return self._signal

    def silence(self, peer: str) -> float:
        """Return the seconds since the last message of a peer, on this machine's clock; 0 if the peer is unknown."""
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
