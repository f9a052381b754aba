"""Limit on the time for which a store may block the shipper."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trainyard.track.shipper.backoff import PATIENCE

if TYPE_CHECKING:
    from mlflow import MlflowClient

RATE = 250_000
"""Minimum speed that is expected of an upload, in bytes per second."""
_UPLOADS = ("log_artifact", "log_artifacts", "log_model_artifacts")
"""Methods of the client whose second argument is a file or folder to upload."""
_LOOK = 0.1  # seconds between two looks of the watch


class Exchanges:
    """Counts the time that exchanges with stores have taken since the last success.

    The timeouts of HTTP clients apply to single reads: a server that occasionally sends a byte can block a client
    forever. Here, the time of the complete exchange is counted.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waited = 0.0
        self._allowed = 0.0  # seconds more, for the size of the one in progress
        self._began: float | None = None

    @contextmanager
    def one(self, size: int = 0) -> Iterator[None]:
        """Count the time of the block; a nested exchange counts as a part of the outer one.

        Args:
            size: the number of bytes that are uploaded.
        """
        if self._began is not None:
            yield
            return
        with self._lock:
            self._began, self._allowed = time.monotonic(), size / RATE
        succeeded = False
        try:
            yield
            succeeded = True
        finally:
            with self._lock:
                self._waited = 0.0 if succeeded else self._waited + time.monotonic() - self._began
                self._began = None

    @property
    def waited(self) -> float:
        """Seconds for which a store has blocked the shipper, without the time that an upload may take; 0 between
        exchanges."""
        with self._lock:
            if self._began is None:
                return 0.0
            return self._waited + time.monotonic() - self._began - self._allowed

    def watch(self, limit: float, late: Callable[[], None]) -> Callable[[], None]:
        """Call `late` in a thread once exchanges have taken `limit` seconds without a success.

        Returns:
            A function that stops the watch.
        """
        ended = threading.Event()
        with self._lock:
            self._waited = 0.0
            if self._began is not None:
                self._began = time.monotonic()

        def look() -> None:
            while not ended.wait(_LOOK):
                if self.waited > limit:
                    late()
                    return

        threading.Thread(target=look, daemon=True).start()
        return ended.set


def patience(default: float = PATIENCE) -> float:
    """Return the seconds that exchanges may take: `MLFLOW_HTTP_REQUEST_TIMEOUT` if the user has set it."""
    try:
        return float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", default))
    except ValueError:  # MLflow will say it
        return default


def counted(client: MlflowClient, exchanges: Exchanges) -> MlflowClient:
    """Return a client whose calls are each counted as an exchange."""
    return cast("MlflowClient", _Counted(client, exchanges))


class _Counted:
    def __init__(self, client: MlflowClient, exchanges: Exchanges) -> None:
        self._client = client
        self._exchanges = exchanges

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **named: Any) -> Any:
            with self._exchanges.one(_size(Path(arguments[1])) if name in _UPLOADS else 0):
                return method(*arguments, **named)

        return call


def _size(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
