"""Processes of a command, seen from outside: the tree below one, and how much it has written."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for each in found:  # it grows meanwhile
        found += children.get(each, [])
    return found


def command(pid: int) -> str:
    """Return the command line of a process; an empty one if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def alive(pids: Iterable[int]) -> list[int]:
    """Return those of some processes that still run; a zombie does not."""
    return [pid for pid in pids if _state(pid) not in (None, "Z", "X")]


def send(pids: Iterable[int], signum: int) -> None:
    """Send a signal to processes; one that has ended is skipped."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.Signals(signum))


def written(folder: Path) -> int:
    """Return the size of the manifest and the journals in a folder together, in bytes."""
    return sum(_size(file) for file in (*folder.glob("manifest.jsonl"), *folder.glob("*/metrics.jsonl")))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _fields(int(entry.name))
            if fields is not None:
                yield int(entry.name), int(fields[1])


def _state(pid: int) -> str | None:
    fields = _fields(pid)
    return None if fields is None else fields[0]


def _fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the command's name; the state and the parent are first."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
