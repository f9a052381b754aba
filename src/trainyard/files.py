"""Replacement and removal of files and folders, and what is said of a full disk."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainyard.errors import TrainyardError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(TrainyardError):
    """No space is left for a file.

    Args:
        path: the file, or the folder that it was for.
        cause: what the system said.
    """

    status = 1

    def __init__(self, path: str | Path, cause: OSError) -> None:
        super().__init__(path, cause.strerror)

    def __str__(self) -> str:
        path, said = self.args
        return f"{path} could not be written: {said}. Free space, then resume=true goes on from the last checkpoint."


class DirectoryGoneError(TrainyardError):
    """The directory of a run is no longer where it was."""

    status = 1


def disk_full(error: BaseException | None) -> OSError | None:
    """Return the system's error of a full disk (or quota, or limit of a file) that an error is or comes from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def writing(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Name the file in the error of a full disk, and remove what was written under a temporary name if that fails.

    Raises:
        DiskFullError: no space is left.
    """
    try:
        yield
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                remove(temporary)
        cause = disk_full(error)
        if cause is None or isinstance(error, DiskFullError):
            raise
        raise DiskFullError(path, cause) from error


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
