"""Replacement and removal of files and folders."""

from __future__ import annotations

import shutil
from pathlib import Path


def remove(path: Path) -> None:
    """Remove the file or folder at `path`, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put(temporary: Path, path: Path) -> None:
    """Rename a file or folder to `path`, and replace the file or folder of that name.

    A file replaces a file atomically. Otherwise the old entry is first moved aside and then removed.
    """
    if not path.is_dir() and not (temporary.is_dir() and path.exists()):
        temporary.replace(path)
        return
    older = path.with_name(f".{path.name}.old")
    remove(older)
    path.rename(older)
    temporary.rename(path)
    remove(older)
