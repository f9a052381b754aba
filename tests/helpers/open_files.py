"""Files that this process has open."""

from __future__ import annotations

from pathlib import Path


def open_files(below: Path) -> list[Path]:
    """Return the open files in a folder, one for each descriptor."""
    descriptors = list(Path("/proc/self/fd").iterdir())
    files = [each.readlink() for each in descriptors if each.is_symlink()]  # that of the listing itself is closed
    return [file for file in files if file.is_relative_to(below)]
