"""Temporary files that are named after their process, so that a later one can remove what a killed process left.

A name ends in `HOST-PID-START`: a mark of the system (its boot and its space of process numbers, or its name), the
process's number, and the time at which it started in ticks since boot, 0 if it is unknown. Files of another system are
never removed, because it is unknown whether their process is alive.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import tempfile
from contextlib import suppress
from multiprocessing import process, util
from pathlib import Path

from trainyard.files import remove

_OURS = "trainyard"
_MAX_PATH = 66  # characters; a socket in it, whose path has 108 at most, adds pymp-xxxxxxxx/listener-xxxxxxxx


def marked(prefix: str) -> str:
    """Return a name that no other living process gives with this prefix."""
    return f"{prefix}{_host()}-{os.getpid()}-{_start(os.getpid())}"


def remove_left(folder: Path, prefix: str) -> None:
    """Remove the entries of a folder that dead processes of this system have named by `marked(prefix)`.

    What cannot be removed stays.
    """
    with suppress(OSError):
        for entry in folder.iterdir():
            if entry.name.startswith(prefix) and _is_left(entry.name.removeprefix(prefix)):
                with suppress(OSError):
                    remove(entry)


def own_folder() -> Path:
    """Return a new folder of this process's among the system's temporary files.

    It is removed when the process ends; if that is killed, by the next process that asks for a folder.
    """
    parent = Path(tempfile.gettempdir(), f"{_OURS}-{os.getuid()}")
    parent.mkdir(mode=0o700, exist_ok=True)
    if parent.is_symlink() or parent.stat().st_uid != os.getuid():  # made by somebody else, who could change the files
        parent = Path(tempfile.gettempdir())
    prefix = "" if parent.name.startswith(_OURS) else f"{_OURS}-"
    remove_left(parent, prefix)
    folder = parent / marked(prefix)
    folder.mkdir(mode=0o700)
    util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)  # after children have ended
    return folder


def use_own_folder() -> Path | None:
    """Let `tempfile` put the files of this process into a folder of its own.

    Returns:
        The folder; None where none can be made: the files go where they went.
    """
    try:
        folder = own_folder()
    except OSError:
        return None
    tempfile.tempdir = str(folder)
    return folder


def for_multiprocessing() -> None:
    """Let `multiprocessing` put the sockets of this process and of those that it forks into a folder of its own."""
    config = getattr(process.current_process(), "_config", None)
    if not isinstance(config, dict) or config.get("tempdir") is not None:
        return
    with suppress(OSError):
        folder = own_folder()
        if len(str(folder)) <= _MAX_PATH:
            config["tempdir"] = str(folder)


@functools.cache
def _host() -> str:
    parts = [platform.node()]
    with suppress(OSError):
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").stat().st_ino)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _start(pid: int) -> int:
    """Return when a process started, in ticks since boot; 0 if it is unknown."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return 0


def _is_left(mark: str) -> bool:
    host, _, rest = mark.partition("-")
    number, _, start = rest.partition("-")
    if host != _host() or not (number.isdecimal() and start.isdecimal()):
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # of another user
        return False
    return _start(int(number)) not in (0, int(start)) and start != "0"
