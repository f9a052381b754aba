"""Temporary files that are named after their process, so that a later process can remove the files of a killed one.

A name ends in `HOST-PID-START`: an identifier of the system (from its boot and its PID namespace, or its name), the
number of the process, and its start time in ticks since boot, or 0 if that is unknown. Files of another system are
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
    """Return a name with this prefix that no other living process uses."""
    return f"{prefix}{_host()}-{os.getpid()}-{_start(os.getpid())}"


def remove_left(folder: Path, prefix: str) -> None:
    """Remove the entries of a folder that dead processes of this system named with `marked(prefix)`.

    Entries that cannot be removed remain.
    """
    with suppress(OSError):
        for entry in folder.iterdir():
            if entry.name.startswith(prefix) and _is_left(entry.name.removeprefix(prefix)):
                with suppress(OSError):
                    remove(entry)


def own_folder() -> Path:
    """Return a new folder for this process among the system's temporary files.

    The folder is removed when the process ends. If the process is killed, the next process that calls this
    function removes it.
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
    """Make `tempfile` write the files of this process into a separate folder.

    Returns:
        The folder; None if no folder can be created: the location of temporary files does not change.
    """
    try:
        folder = own_folder()
    except OSError:
        return None
    tempfile.tempdir = str(folder)
    return folder


def for_multiprocessing() -> None:
    """Make `multiprocessing` create the sockets of this process and its forks in a separate folder."""
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
    """Return the start time of a process, in ticks since boot; 0 if it is unknown."""
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
