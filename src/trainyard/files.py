"""Replacement and removal of files and folders, and the message for a full disk."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from trainyard.errors import TrainyardError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
T = TypeVar("T")
DISK_PATIENCE = "TRAINYARD_DISK_PATIENCE"
"""Environment variable with the number of seconds for which a directory may be missing. Agents set it for their
jobs."""
_LOOK = 0.2  # seconds
RESUME = "resume=true continues from the last checkpoint"
RESUME_SWEEP = "`trainyard sweep resume DIR` continues the sweep"
"""Next steps for the user after a full disk or the loss of a directory."""
REPEAT = "repeat "
"""Start of a next step that does not need the files of the run."""
_NEXT_STEPS = [RESUME]  # the last one applies
_FREE = "Free some disk space"
_RAISE = "Raise the limit for the size of a file (ulimit -f, or the limit of the file system)"


class DiskFullError(TrainyardError):
    """No space is left for a file.

    Args:
        path: the file, or its folder.
        cause: the error of the system.
        then: the next step for the user once there is space; None for the next step of this process (`next_step`).
    """

    status = 1

    def __init__(self, path: str | Path, cause: OSError, then: str | None = None) -> None:
        super().__init__(path, cause.strerror, current_step() if then is None else then)

    def __reduce__(self) -> tuple[object, ...]:
        path, said, then = self.args
        return DiskFullError, (path, OSError(0, said), then)

    def __str__(self) -> str:
        path, said, then = self.args
        advice = _RAISE if said == os.strerror(errno.EFBIG) else _FREE
        return f"{path} could not be written: {said}. {advice}; then {then}."


class DirectoryGoneError(TrainyardError):
    """The directory of a run no longer exists at its path.

    Args:
        directory: the directory.
        name: the name of the file that cannot be saved.
        then: the next step for the user; None for the next step of this process (`next_step`).
    """

    status = 1

    def __init__(self, directory: str | Path, name: str, then: str | None = None) -> None:
        super().__init__(directory, name, current_step() if then is None else then)

    def __str__(self) -> str:
        directory, name, then = self.args
        again = then.startswith(REPEAT)
        advice = f"{then[:1].upper()}{then[1:]}" if again else f"If it was moved, move it back; then {then}"
        return f"{directory} was moved or removed during the run, so {name} cannot be saved. {advice}."


@contextmanager
def next_step(then: str) -> Iterator[None]:
    """Name this next step for the user in the errors of full disks and lost directories inside the block.

    It applies to all threads of this process.
    """
    _NEXT_STEPS.append(then)
    try:
        yield
    finally:
        _NEXT_STEPS.pop()


def current_step() -> str:
    """Return the next step for the user after a full disk or the loss of a directory: see `next_step`."""
    return _NEXT_STEPS[-1]


def disk_full(error: BaseException | None) -> OSError | None:
    """Return the system's error of a full disk (or an exceeded quota or file limit) that is this error or its cause."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def returned(folder: Path, patience: float | None = None) -> bool:
    """Return whether a folder exists; wait if it is missing, because a network disk can be unavailable for a while.

    Args:
        folder: the folder.
        patience: seconds; None for those of the environment (`DISK_PATIENCE`), which are 0 outside of agents.
    """
    until = time.monotonic() + (float(os.environ.get(DISK_PATIENCE, "0")) if patience is None else patience)
    while not folder.exists():
        if time.monotonic() >= until:
            return False
        time.sleep(_LOOK)
    return True


def despite_absence(folder: Path, write: Callable[[], T], patience: float | None = None) -> T:
    """Write to a folder; retry once if the folder was missing and has `returned`.

    Raises:
        FileNotFoundError: the folder has not returned.
    """
    try:
        return write()
    except FileNotFoundError:
        if not returned(folder, patience):
            raise
        return write()


@contextmanager
def writing(path: Path, temporary: Path | None = None, then: str | None = None) -> Iterator[None]:
    """Name the file in the error of a full disk, and remove the temporary file if writing fails.

    Args:
        path: the file, or its folder.
        temporary: the temporary file; None for none.
        then: the next step for the user once there is space; None for the next step of this process (`next_step`).

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
        raise DiskFullError(path, cause, then) from error


def append_whole(fd: int, lines: bytes, path: Path, then: str | None = None) -> None:
    """Append lines to a file, all of them or none, in one call if the system accepts all of them.

    Args:
        fd: the file, open for appending.
        lines: the lines to write.
        path: the file's path, for the error.
        then: the next step for the user once there is space; None for the next step of this process (`next_step`).

    Raises:
        DiskFullError: no space is left.
    """
    written = 0
    try:
        while written < len(lines):  # after an incomplete write, the next one fails with the cause
            written += os.write(fd, lines[written:])
    except OSError as error:
        if written:
            os.ftruncate(fd, os.fstat(fd).st_size - written)
        if disk_full(error) is None:
            raise
        raise DiskFullError(path, error, then) from error


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
