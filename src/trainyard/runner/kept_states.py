"""Kept states: the states of paused members in the most recently written checkpoints."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import torch

_Identity = tuple[int, int, int, int]

MOST = 2**28
"""Maximum number of bytes to keep; the oldest states are dropped first."""


class KeptStates:
    """States of recently written checkpoints in memory: a member that continues from one need not read the file.

    A file is identified by its identity, not by its name, because the checkpoint that a member inherits is a hard link
    to the file of another member. Used by the training thread and the writing thread.

    Args:
        most: the maximum number of bytes to keep.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._bytes = 0
        self._states: OrderedDict[_Identity, tuple[dict[str, Any], int]] = OrderedDict()
        self._lock = Lock()

    def keep(self, path: Path, state: dict[str, Any]) -> None:
        """Keep the state in a file.

        Args:
            path: the file, which has already been written.
            state: the state, which no longer changes.
        """
        identity, size = _identity(path), _size(state)
        if identity is None:
            return
        with self._lock:
            self._states[identity] = state, size
            self._bytes += size
            while self._bytes > self._most:
                _, (_, size) = self._states.popitem(last=False)
                self._bytes -= size

    def state(self, path: Path) -> dict[str, Any] | None:
        """Return a copy of the state in a file; None if it is not kept."""
        identity = _identity(path)
        with self._lock:
            found = None if identity is None else self._states.get(identity)
        return None if found is None else copied(found[0])


def copied(value: Any) -> Any:
    """Copy a nest of dicts, lists and tuples with every tensor in it."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(entry) for entry in value)
    return value


def _identity(path: Path) -> _Identity | None:
    """Return an identity of a file; None for a folder, or if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return None if path.is_dir() else (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_size, entries))
