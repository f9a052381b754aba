"""Errors that end a sweep early."""

from __future__ import annotations

from trainyard.application import continuation
from trainyard.errors import TrainyardError, counted
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import SHOWN


class SweepFailedError(TrainyardError):
    """A job of a sweep failed, or several did. The message is created when it is read, from all jobs known at that
    time."""

    status = 1

    def __init__(self, manifest: Manifest) -> None:
        super().__init__()
        self.manifest = manifest

    def __str__(self) -> str:
        entries = self.manifest.entries
        left = [f"#{num}" for num, entry in entries.items() if entry.has_failed]
        shown = ", ".join(left[:SHOWN]) + (", …" if len(left) > SHOWN else "")
        return (
            f"{len(left)} of {counted(len(entries), 'job')} did not finish: {shown}. "
            f"To retry, {how_to_continue(self.manifest)}."
        )


def how_to_continue(manifest: Manifest) -> str:
    """Return the instruction for continuing a sweep, in the imperative, for a message.

    `trainyard sweep resume` also repeats a command that was itself `trainyard sweep resume`. It needs the file of the
    application.
    """
    return continuation(manifest.path.parent, recorded=manifest.application is not None)


class InterruptedSweepError(TrainyardError):
    """The sweep was interrupted; the message says how to continue it."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.status = 128 + signum

    @classmethod
    def between_jobs(cls, manifest: Manifest, signum: int) -> InterruptedSweepError:
        """Return the error of a sweep that was interrupted while no job was running, before the next jobs started."""
        if not manifest.entries:
            return cls("Interrupted before the first job started. To start the sweep, repeat the command.", signum)
        how = how_to_continue(manifest)
        return cls(f"Interrupted before the next jobs started. To continue the sweep, {how}.", signum)
