"""Commands of users for a running sweep, executed by its head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from trainyard.errors import TrainyardError
from trainyard.sweep.event_records import Record
from trainyard.sweep.events import END_OF_WISH, FINAL, Event, Proposed, Unit, Wish
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job
from trainyard.sweep.progress import SweepProgress
from trainyard.sweep.scheduler import Scheduler
from trainyard.sweep.steering import Command, CommandFolder, acknowledgement, in_words
from trainyard.sweep.units import UnitTasks

BY_HAND = "by hand"
TOLD = {
    "stop": "saves a checkpoint and stops",
    "pause": "saves a checkpoint and pauses",
    "resume": "resumes when a slot is free",
}
"""Effect of a command on a running job, or of `resume` on a paused one, for users."""

Clone = Callable[[int, Sequence[str]], tuple[Job, Proposed]]
"""Makes a clone of a job, with some overrides that are different."""


class CommandedHead(Protocol):
    """Actions of the head for commands."""

    def apply(self, *events: Event) -> None:
        """Log events, pass them on, and act."""

    def queue(self, units: Sequence[Unit], why: str = "") -> None:
        """Queue units to run from now on."""

    def ask_for(self, num: int, wish: Wish, why: str) -> None:
        """Ask a job to end at its next checkpoint."""

    def resume(self, num: int) -> None:
        """Resume a paused job."""


class ByHand:
    """Executes commands.

    Args:
        head: the head.
        commands: the commands.
        scheduler: the scheduler, which has the states of jobs.
        manifest: the manifest, which has the answers.
        units: has the jobs by number.
        progress: shows commands and their answers.
        clone: creates clones.
        adopt: adds a recorded clone.
    """

    def __init__(
        self,
        head: CommandedHead,
        commands: CommandFolder,
        scheduler: Scheduler,
        manifest: Manifest,
        units: UnitTasks,
        progress: SweepProgress,
        clone: Clone,
        adopt: Callable[[Job], Unit],
    ) -> None:
        self._head = head
        self._commands = commands
        self._scheduler = scheduler
        self._manifest = manifest
        self._units = units
        self._progress = progress
        self._clone = clone
        self._adopt = adopt
        self._acknowledged: Record | None = None

    def answer(self) -> Record | None:
        """Return the answer to the command that is being executed, once; it is written with the next events."""
        answer, self._acknowledged = self._acknowledged, None
        return answer

    def obey(self) -> None:
        """Execute the commands that are not answered yet. The answer and the event are written together."""
        for command in self._commands.pending(self._manifest.answered):
            if command.job in self._manifest.entries and command.job not in self._units.jobs:
                continue  # the job is of a later batch
            refusal = self._refusal(command)
            told = ""
            if not refusal:
                try:
                    told = self._obeyed(command)
                except TrainyardError as error:
                    refusal = str(error)
            if refusal:
                self._manifest.answer(command, refusal=refusal)
            self._progress.commanded(str(command), refusal or told)

    def _obeyed(self, command: Command) -> str:
        """Execute a permitted command, and return its effect on the job.

        Raises:
            TrainyardError: the clone is not possible.
        """
        if command.action == "clone":
            return self._cloned(command)
        told = f"#{command.job} {TOLD[command.action] if self._units.resumes else 'stops'}"
        if command.action != "resume" and self._scheduler.unit_of(command.job) is None:
            told = f"#{command.job} is {END_OF_WISH[command.action]}"
        self._acknowledged = acknowledgement(command, told=told)
        if command.action == "resume":
            self._head.resume(command.job)
        else:
            self._head.ask_for(command.job, command.action, BY_HAND)
        return told

    def _cloned(self, command: Command) -> str:
        """Start a clone of a job, and return a message about it.

        Raises:
            TrainyardError: the clone is not possible.
        """
        job, proposed = self._clone(command.job, command.overrides)
        assert proposed.origin is not None
        told = f"#{job.num} starts from {proposed.origin.checkpoint} of #{command.job}"
        self._acknowledged = acknowledgement(command, told=told)
        self._head.apply(proposed)
        self._head.queue([self._adopt(job)], "cloned")
        return told

    def _refusal(self, command: Command) -> str:
        """Return why a command cannot be executed; empty if it can."""
        num, state = command.job, self._scheduler.state(command.job)
        if num not in self._units.jobs or state is None:
            return f"this sweep has no job #{num}"
        if command.action == "clone":
            return "" if self._units.resumes else "this sweep's application cannot resume from a checkpoint"
        if state in FINAL:
            return f"#{num} {in_words(state)}"
        if command.action == "resume":
            return "" if state == "paused" else f"#{num} {in_words(state)}; only a paused job can be resumed"
        if command.action == "pause":
            if not self._units.resumes:
                return "this sweep's application cannot resume from a checkpoint"
            if state == "paused" and not self._manifest.entries[num].is_held:
                return ""  # at a rung
            if state not in ("running", "waiting"):
                return f"#{num} {in_words(state)}"
        return ""
