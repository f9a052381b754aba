"""How a sweep ends that does not come to its end."""

from __future__ import annotations

from trainyard.errors import TrainyardError
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import SHOWN


class SweepFailedError(TrainyardError):
    """Some job of a sweep did not come to its end. The message is of all jobs that there are when it is read."""

    status = 1

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        self.manifest = manifest

    def __str__(self) -> str:
        entries = self.manifest.entries
        left = [f"#{num}" for num, entry in entries.items() if entry.state != "done"]
        shown = ", ".join(left[:SHOWN]) + (", …" if len(left) > SHOWN else "")
        return (
            f"{len(left)} of {len(entries)} jobs did not come to their end: {shown}. "
            f"The same command with hydra.sweep.dir={self.manifest.path.parent} tries them again."
        )


class InterruptedSweepError(TrainyardError):
    """The sweep was asked to end; the same command goes on with it."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.status = 128 + signum
