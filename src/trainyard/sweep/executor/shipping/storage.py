"""Storage of a sweep on nodes that share no disk: files by their names under a URL that fsspec opens."""

from __future__ import annotations

import importlib
import json
import posixpath
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
from fsspec.core import split_protocol, url_to_fs  # type: ignore[import-untyped]
from fsspec.registry import known_implementations  # type: ignore[import-untyped]

from trainyard.errors import ConfigError, nearest

KEY = "storage"
ACCEPTED = (
    "a URL that fsspec writes to (s3://BUCKET/FOLDER, gs://…, sftp://…, or file:///FOLDER on a disk of all nodes), or "
    "null if all nodes share the disk of the sweep"
)
_MARK = "sweep.json"
_PART = ".part"
_OBJECTS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
"""Protocols of object storages: an object appears only when it is complete, and there are no folders."""
_VERSIONS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "updated", "modified", "created")


class StorageError(Exception):
    """The storage no longer contains its files, for example because a bucket or a disk is temporarily unavailable."""


class Storage:
    """Files under a URL, which appear only when complete: outside object storages, they are renamed at the end.

    Args:
        url: the URL of the folder.

    Raises:
        ConfigError: its protocol is unknown, or the package that opens it is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._fs, self._root = _opened(self.url)
        self._has_objects = split_protocol(self.url)[0] in _OBJECTS

    def below(self, name: str) -> Storage:
        """Return a folder of this one as a storage."""
        return Storage(f"{self.url}/{name}")

    def check(self) -> None:
        """Write and remove a small file.

        Raises:
            ConfigError: this fails.
        """
        name = f".trainyard-{secrets.token_hex(8)}"
        try:
            self.write(name, b"trainyard")
            told = self.read(name)
            self.remove(name)
            if told != b"trainyard":
                raise StorageError("the data that was read differs from the data that was written")
        except Exception as error:
            raise ConfigError(
                KEY, self.url, ACCEPTED, hint=f"A test file could not be written, read and removed: {in_words(error)}."
            ) from error

    def mark(self, told: dict[str, Any]) -> None:
        """Write a file that shows other machines that they see this storage."""
        self.write(_MARK, json.dumps(told).encode())

    def marked(self) -> dict[str, Any]:
        """Return the data that `mark` has written.

        Raises:
            StorageError: it does not exist.
        """
        try:
            told: dict[str, Any] = json.loads(self.read(_MARK))
        except FileNotFoundError:
            raise StorageError(f"{self.url} does not contain this sweep") from None
        return told

    def files(self, folder: str) -> dict[str, str]:
        """Return the files in a folder, or the file with this name: by name, each with a value that changes with its
        content."""
        path = self._path(folder)
        try:
            found = self._fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        return {self._name(each): _version(told) for each, told in found.items() if not each.endswith(_PART)}

    def version(self, name: str) -> str:
        """Return a value that changes with the content of a file."""
        return _version(self._fs.info(self._path(name)))

    def read(self, name: str, begin: int = 0) -> bytes:
        """Return the content of a file, from a byte on."""
        path = self._path(name)
        if begin and self._fs.size(path) <= begin:
            return b""  # a range that is empty is an error to some storages
        content: bytes = self._fs.cat_file(path, start=begin or None)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        self._write_whole(name, lambda path: self._fs.pipe_file(path, content))

    def put(self, file: Path, name: str) -> None:
        """Copy a file into the storage."""
        self._write_whole(name, lambda path: self._fs.put_file(str(file), path))

    def get(self, name: str, file: Path) -> None:
        """Copy a file out of the storage."""
        self._fs.get_file(self._path(name), str(file))

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def clear(self) -> None:
        """Remove everything."""
        with suppress(FileNotFoundError):
            self._fs.rm(self._root, recursive=True)

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def _name(self, path: str) -> str:
        return posixpath.relpath(path, self._root)

    def _write_whole(self, name: str, write: Callable[[str], object]) -> None:
        path = self._path(name)
        if self._has_objects:
            write(path)
            return
        self._fs.makedirs(posixpath.dirname(path), exist_ok=True)
        part = f"{path}.{secrets.token_hex(4)}{_PART}"
        write(part)
        self._fs.mv(part, path)


def _version(told: Mapping[str, Any]) -> str:
    """Return a text that changes with the content of a file, from what its storage reports about it."""
    found = next((told[key] for key in _VERSIONS if told.get(key) is not None), "")
    return f"{told.get('size')} {found.timestamp() if isinstance(found, datetime) else found} {told.get('ino', '')}"


def _opened(url: str) -> tuple[Any, str]:
    protocol, _ = split_protocol(url)
    if protocol is None:
        raise ConfigError(KEY, url, ACCEPTED, hint="The URL does not start with a protocol such as s3://.")
    if protocol not in fsspec.available_protocols():
        close = nearest(protocol, fsspec.available_protocols())  # of the protocol: the URL is longer than any of them
        meant = f" Did you mean {close}://?" if close else ""
        raise ConfigError(KEY, url, ACCEPTED, hint=f"fsspec does not support {protocol}://.{meant}")
    try:
        importlib.import_module(known_implementations[protocol]["class"].rpartition(".")[0])
        fs, root = url_to_fs(url, use_listings_cache=False)
    except (ImportError, KeyError) as error:
        told = known_implementations.get(protocol, {}).get("err") or str(error)
        raise ConfigError(
            KEY, url, ACCEPTED, hint=f"{told.rstrip('.')}. Install this package on the nodes too."
        ) from error
    except Exception as error:
        raise ConfigError(KEY, url, ACCEPTED, hint=f"The storage cannot be opened: {in_words(error)}.") from error
    return fs, str(root)


def in_words(error: Exception) -> str:
    """Return the message of an error of a storage, without a full stop; of an OSError, with its file."""
    told = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        told = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return " ".join(told.split()).rstrip(".")
