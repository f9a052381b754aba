"""Files and folders put in the place of others."""

from __future__ import annotations

import shutil
from pathlib import Path


def remove(path: Path) -> None:
    """Remove a file or a folder, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put(temporary: Path, path: Path) -> None:
    """Rename a file or a folder to `path`, in the place of a file or a folder of that name.

    A file takes the place of a file in one step. Otherwise what was there is moved aside first and then removed.
    """
    if not path.is_dir() and not (temporary.is_dir() and path.exists()):
        temporary.replace(path)
        return
    older = path.with_name(f".{path.name}.old")
    remove(older)
    path.rename(older)
    temporary.rename(path)
    remove(older)
