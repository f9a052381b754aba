"""Checksum of a complete zip archive in its comment, which readers of zip archives ignore.

An archive has a checksum of each record, but not of the positions, names and lengths of the records.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

_END = b"PK\x05\x06"
_END_SIZE = 22
"""Size of the last part of an archive; its last two bytes are the length of the comment that follows."""
_MARK = b"trainyard crc32 "
_SIZE = len(_MARK) + 8
_BLOCK = 1 << 22


class SummedWriter:
    """File to which an archive is written sequentially, and which computes its checksum.

    Args:
        file: an empty file; call `end` when the archive is complete.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = 0
        self._last = b""

    def write(self, data: bytes) -> int:
        """Append bytes."""
        view = memoryview(data).cast("B")
        if len(view) < 2:
            self._last += bytes(view)
            self._sum, self._last = zlib.crc32(self._last[:-2], self._sum), self._last[-2:]
        else:
            self._sum = zlib.crc32(view[:-2], zlib.crc32(self._last, self._sum))
            self._last = bytes(view[-2:])
        self._file.write(view)
        return len(view)

    def flush(self) -> None:
        """Pass the written data to the system."""
        self._file.flush()

    def end(self) -> None:
        """Write the comment with the checksum of all previous data."""
        length = struct.pack("<H", _SIZE)
        self._file.seek(-2, 2)
        self._file.write(length)
        self._file.write(_MARK + b"%08x" % zlib.crc32(length, self._sum))


def holds(path: Path) -> bool | None:
    """Return whether a file has the checksum in its comment; None for an archive without a comment.

    For a file with any other ending, the result is False.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _END_SIZE))
        end = file.read()
        if end.startswith(_END) and end.endswith(b"\0\0"):
            return None
        if size < _SIZE:
            return False
        file.seek(0)
        left, found = size - _SIZE, 0
        while left and (block := file.read(min(_BLOCK, left))):
            left, found = left - len(block), zlib.crc32(block, found)
        return file.read() == _MARK + b"%08x" % found
