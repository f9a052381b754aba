"""Calls whose paths mean the same on machines that keep a sweep in different folders.

A path at or below a folder with a different place on each machine is pickled as that of the head; the receiving machine
replaces it with its own. This applies to all strings and paths in a call.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PosixPath
from typing import Any, BinaryIO

import cloudpickle  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Folders:
    """Folders of this machine that correspond to those of the head.

    Attributes:
        sweep: the head's directory of the sweep, and this machine's.
        code: the head's folders with code, each with that of this machine. They correspond only to their contents here;
            data among the code of the head is searched at its original place.
    """

    sweep: tuple[str, str] = ("", "")
    code: Mapping[str, str] = field(default_factory=dict)

    def located(self, path: str) -> str:
        """Return the local counterpart of a path of the head; the path itself if there is none."""
        name, own = self.sweep
        if name and _is_in(path, name):
            return own + path[len(name) :]
        for name, own in sorted(self.code.items(), key=lambda it: -len(it[0])):
            if _is_in(path, name) and Path(found := own + path[len(name) :]).exists():
                return found
        return path

    def named(self, path: str) -> str:
        """Return the path of the head that corresponds to a path; the path itself if there is none."""
        for name, own in sorted((self.sweep, *self.code.items()), key=lambda it: -len(it[1])):
            if own and _is_in(path, own):
                return name + path[len(own) :]
        return path


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    def __init__(self, file: BinaryIO, folders: Folders, prefixes: tuple[str, ...]) -> None:
        super().__init__(file)
        self._folders = folders
        self._prefixes = prefixes

    def persistent_id(self, value: Any) -> Any:
        kind = type(value)
        if kind is str:
            return self._id(True, value) if value.startswith(self._prefixes) else None
        if kind is PosixPath and (text := str(value)).startswith(self._prefixes):
            return self._id(False, text)
        return None

    def _id(self, is_text: bool, path: str) -> tuple[bool, bytes]:
        return is_text, os.fsencode(self._folders.named(path))  # bytes: an id is pickled, too, and asked for its own id


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, folders: Folders) -> None:
        super().__init__(file)
        self._folders = folders

    def persistent_load(self, pid: Any) -> Any:
        is_text, path = pid
        located = self._folders.located(os.fsdecode(path))
        return located if is_text else Path(located)


def dumps(value: Any, folders: Folders, importable: bool = False) -> bytes:
    """Pickle a value on a machine with these folders. On the head, they correspond to themselves.

    Args:
        value: the value.
        folders: the folders.
        importable: whether all its classes and functions can be imported, for which pickle is enough.
    """
    prefixes = tuple(own for own in (folders.sweep[1], *folders.code.values()) if own)
    if not prefixes:
        pickled: bytes = pickle.dumps(value) if importable else cloudpickle.dumps(value)
        return pickled
    file = io.BytesIO()
    _Pickler(file, folders, prefixes).dump(value)
    return file.getvalue()


def load(file: BinaryIO, folders: Folders = Folders()) -> Any:
    """Read a value from a file; without folders, at the head."""
    return _Unpickler(file, folders).load()


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
