"""Head of a sweep that was submitted as a Slurm job: its number, and its state in the queue."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from trainyard.errors import TrainyardError
from trainyard.quoting import shell_path
from trainyard.sweep.executor import slurm_commands
from trainyard.sweep.executor.slurm import FOLDER
from trainyard.sweep.executor.slurm_commands import QueuedJob, SlurmError

_JOB = "head"


def note_number(directory: Path, number: str) -> None:
    """Record the number of the job that runs a sweep."""
    (directory / FOLDER / _JOB).write_text(number)


def number_of(directory: Path) -> str | None:
    """Return the number of the job that was submitted to run a sweep; None if this process or another one ran it
    last."""
    try:
        return (directory / FOLDER / _JOB).read_text().strip() or None
    except OSError:
        return None


def queued(directory: Path) -> QueuedJob | None:
    """Return the job that runs a sweep while it is pending or running; None if there is none, or if it is unknown."""
    number = number_of(directory)
    if number is not None and shutil.which("squeue") is not None:
        with suppress(SlurmError):
            return slurm_commands.queued(number)
    return None


def check_gone(directory: Path) -> None:
    """Check that no job of Slurm runs a sweep, or will run it.

    Raises:
        TrainyardError: there is such a job.
    """
    job = queued(directory)
    if job is not None:
        place = shell_path(directory)
        runs = "will run" if job.state == "PENDING" else "runs"
        raise TrainyardError(
            f"Slurm job {job.place}, which {runs} this sweep, is {job.state.lower()}. To watch it, use "
            f"`trainyard sweep attach {place}`. To continue the sweep without this job, first end it: "
            f"`trainyard sweep cancel {place}`."
        )


def take_over(directory: Path) -> None:
    """Make this process the head of a sweep whose head may have been submitted before: then `attach` shows this one.

    Raises:
        TrainyardError: the submitted head is another process, which is pending or running.
    """
    number = number_of(directory)
    if number is not None and number != os.environ.get("SLURM_JOB_ID"):
        check_gone(directory)
        (directory / FOLDER / _JOB).unlink(missing_ok=True)
