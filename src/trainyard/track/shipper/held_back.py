"""Uploads that are held back because the directory of the run comes from elsewhere: no code is run, and no file outside
the directory is sent."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from trainyard.errors import TrainyardError, some
from trainyard.quoting import shell_path
from trainyard.redaction import redact
from trainyard.track import journal, run_info
from trainyard.track.journal import Record
from trainyard.track.shipped import FILE as SHIPPED
from trainyard.track.shipped import LOCK, LOG, TRUST

_SHOWN = 3
_MODEL = "model"  # the upload of the model that is registered


class HeldBack:
    """Uploads of a run that wait until the user trusts its directory.

    Args:
        work_dir: the run's directory.
        uri: the store to which the run is uploaded, if it is not the recorded one; for the message.

    Attributes:
        names: the names of the uploads.

    Raises:
        TrainyardError: a file that is read or written in the directory is a link.
    """

    def __init__(self, work_dir: Path, uri: str | None = None) -> None:
        store = "" if uri is None else f" --uri {quote(redact(uri))}"
        self._how = f"If you trust this directory, run: {TRUST}{store} {shell_path(work_dir)}"
        self._work_dir = work_dir
        self.names: set[str] = set()
        for name in (run_info.FILE, journal.FILE, SHIPPED, LOCK, LOG):
            if (work_dir / name).is_symlink():
                raise TrainyardError(
                    f"{work_dir} is not recognized as your own (it may be a copy or a download), and {name} in this "
                    f"directory is a link. {self._how}"
                )

    def holds(self, name: str, record: Record) -> bool:
        """Return whether an upload waits, because the code of a model would run, because a path leads out of the
        directory, or because it registers a model that waits."""
        match record:
            case {"kind": "model"}:
                self.names.add(name)
            case {"kind": "register"} if "of" not in record and _MODEL in self.names:
                self.names.add(name)
            case {"kind": "artifact", "path": path} if self._leads_out(path):
                self.names.add(name)
        return name in self.names

    @property
    def told(self) -> str | None:
        """Message about the uploads that wait; None if no upload waits."""
        if not self.names:
            return None
        return (
            "The directory is not recognized as your own (it may be a copy or a download), so no code is run from this "
            f"directory and no file outside it is uploaded. Skipped: {some(sorted(self.names), _SHOWN)}. "
            f"{self._how}"
        )

    def _leads_out(self, path: str) -> bool:
        inside = self._work_dir.resolve()
        start = self._work_dir / path
        try:
            return not all(found.resolve().is_relative_to(inside) for found in (start, *start.rglob("*")))
        except (OSError, RuntimeError, ValueError):  # links in a circle
            return True
