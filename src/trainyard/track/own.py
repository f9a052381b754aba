"""Runs of this user: directories that the user's trainings have created, and that do not come from elsewhere.

The `run.json` of a run has a mark, which is computed from the run's ID, from the inode number of its directory, and
from a key in the user's home folder. A copy of the directory, an unpacked archive or a download has another inode
number, and nobody else has the key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from trainyard import temporary
from trainyard.errors import TrainyardError
from trainyard.track.run_info import RunInfo

_LENGTH = 32  # bytes of the key


def marked(info: RunInfo, work_dir: Path) -> RunInfo:
    """Return the record of a run with the mark that identifies `work_dir` as the user's own; without a mark if there
    can be no key."""
    key = _key(make=True)
    return replace(info, mark=None if key is None else _mark(key, info.id, work_dir))


def is_own(info: RunInfo, work_dir: Path) -> bool:
    """Return whether this user has created the directory of a run."""
    key = _key()
    return key is not None and info.mark is not None and hmac.compare_digest(info.mark, _mark(key, info.id, work_dir))


def is_own_directory(work_dir: Path) -> bool:
    """Return whether this user has created a directory as the directory of a run."""
    try:
        return is_own(RunInfo.read(work_dir), work_dir)
    except TrainyardError:
        return False


def can_be_told() -> bool:
    """Return whether there is a key: without a key, no directory is recognized as the user's own."""
    return _key() is not None


def _mark(key: bytes, run_id: str, work_dir: Path) -> str:
    return hmac.new(key, f"{run_id} {work_dir.stat().st_ino}".encode(), hashlib.sha256).hexdigest()


def _key(make: bool = False) -> bytes | None:
    """Return the user's key; None if there is none, or if none can be created."""
    with suppress(OSError, RuntimeError):  # no home folder, or one that cannot be written
        state = os.environ.get("XDG_STATE_HOME")
        path = Path(state or Path.home() / ".local" / "state", "trainyard", "key")
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(temporary.marked(".key."))
            part.touch(mode=0o600)
            part.write_bytes(secrets.token_bytes(_LENGTH))
            with suppress(FileExistsError):
                path.hardlink_to(part)  # another process may have made it: that one stays
            part.unlink()
        key = path.read_bytes()
        return key if len(key) == _LENGTH else None
    return None
