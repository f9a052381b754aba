"""Slurm's commands: `sbatch`, `squeue`, `scancel`, `sinfo`. `sacct` is not needed: many clusters have no accounting."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainyard.errors import ConfigError, TrainyardError

TIMEOUT = 20.0
"""Seconds that a command may take."""
_PREFIX = re.compile(r"^(s\w+: )?(error: )?(allocation failure: |Batch job submission failed: )?")
_AGAIN = re.compile(r"Unable to contact|Socket timed out|try again|temporarily", re.IGNORECASE)


class SlurmError(TrainyardError):
    """A Slurm command failed; the message is that of Slurm.

    Attributes:
        passes: whether it may work later, because the controller did not respond.
    """

    status = 1

    def __init__(self, message: str, passes: bool = False) -> None:
        super().__init__(message)
        self.passes = passes


@dataclass(frozen=True)
class QueuedJob:
    """Job in the queue.

    Attributes:
        place: its number: `12`, or `12_3` in an array.
        state: `PENDING`, `RUNNING`, …
        node: its node.
        reason: why it waits.
    """

    place: str
    state: str
    node: str
    reason: str


def check_installed() -> None:
    """Check that Slurm's commands are installed.

    Raises:
        ConfigError: they are not installed.
    """
    if shutil.which("sbatch") is None:
        hint = "sbatch is not on the PATH. Start the sweep on a machine of the cluster, or use hydra/launcher=local."
        raise ConfigError("hydra/launcher", "slurm", "a launcher whose commands are installed", hint=hint)


def submit(script: Path, *options: str) -> str:
    """Submit a script, and return the number of the job.

    Raises:
        SlurmError: Slurm rejects it.
    """
    return _run(["sbatch", "--parsable", *options, str(script)]).strip().partition(";")[0]


def check_script(script: Path) -> None:
    """Check that a job could run at all.

    Raises:
        SlurmError: the job can never run.
    """
    _run(["sbatch", "--test-only", str(script)])


def queue(name: str) -> list[QueuedJob]:
    """Return the waiting and running jobs with a name; jobs of an array are listed separately.

    Raises:
        SlurmError: the controller does not respond.
    """
    return _queue("-r", f"--name={name}")


def queued(number: str) -> QueuedJob | None:
    """Return a job that is waiting or running; None if it has ended.

    Raises:
        SlurmError: the controller does not respond.
    """
    try:
        return next(iter(_queue(f"--jobs={number}")), None)
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise


def _queue(*options: str) -> list[QueuedJob]:
    found = []
    for line in _run(["squeue", "-h", *options, "-o", "%i|%T|%N|%r"]).splitlines():
        place, state, node, reason = line.strip().split("|", 3)
        found.append(QueuedJob(place, state, node, reason))
    return found


def ending(place: str) -> str:
    """Return how a job has ended, for users: ` as FAILED (NonZeroExitCode), exit code 1:0`; empty if Slurm forgot it.

    An exit code is the job's status and the signal that ended it.
    """
    try:
        words = _run(["scontrol", "-o", "show", "job", place]).split()
    except SlurmError:
        return ""
    told = dict(word.split("=", 1) for word in words if "=" in word)
    reason = f" ({told['Reason']})" if told.get("Reason", "None") != "None" else ""
    return f" as {told.get('JobState')}{reason}, exit code {told.get('ExitCode')}"


def cancel(places: Sequence[str], *options: str) -> None:
    """Cancel jobs; jobs that have ended are ignored.

    Raises:
        SlurmError: the controller does not respond.
    """
    if not places:
        return
    try:
        _run(["scancel", "--quiet", *options, *places])
    except SlurmError as error:
        if error.passes:
            raise


def resources() -> str:
    """Describe the nodes of the partitions, for users."""
    lines = _run(["sinfo", "-h", "-o", "%P|%D|%c|%m|%G|%l"]).splitlines()
    told = []
    for line in lines:
        partition, nodes, cpus, memory, gres, limit = line.strip().split("|")
        gpus = "" if gres == "(null)" else f", {gres}"
        several = "" if nodes == "1" else "s"
        each = f"{cpus} CPU{'' if cpus == '1' else 's'}, {memory} MB{gpus}"
        told.append(f"{partition.rstrip('*')}: {nodes} node{several} with {each}, time limit {limit}")
    return "; ".join(told)


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=clean(os.environ),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not respond within {TIMEOUT:g} s", passes=True) from None
    except OSError as error:
        raise SlurmError(f"{command[0]} cannot be started: {error.strerror}") from None
    if done.returncode:
        said = [_PREFIX.sub("", line.strip()) for line in done.stderr.splitlines() if line.strip()]
        said = [line for line in said if not line.startswith(("Try '", 'Try "'))]  # `sbatch --help`
        told = said[-1].rstrip(".") if said else f"{command[0]} ended with status {done.returncode}"
        raise SlurmError(told, passes=_AGAIN.search(told) is not None)
    return done.stdout


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables that Slurm has set for the job of this process.

    Otherwise, a job that is submitted from another one would inherit its limits.
    """
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(("SLURM_", "SLURMD_", "SBATCH_", "SRUN_")) or name == "SLURM_CONF"
    }
