"""Sweep whose head is also a Slurm job: submitted, watched and ended from a terminal."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainyard.application import StartedAs, continuation
from trainyard.errors import ConfigError, TrainyardError, counted
from trainyard.quoting import shell_override, shell_path
from trainyard.starting import WHOLE
from trainyard.sweep.events import FINAL
from trainyard.sweep.executor import slurm_commands
from trainyard.sweep.executor.slurm import FOLDER, SlurmPool, header, name_of
from trainyard.sweep.executor.slurm_commands import QueuedJob, SlurmError
from trainyard.sweep.slurm_settings import SlurmSettings
from trainyard.sweep.steering_cli import SweepState
from trainyard.sweep.submitted_head import check_gone, note_number, number_of
from trainyard.sweep.tracking import MULTIRUN

_SCRIPT, _OUTPUT = "head.sh", "head.out"
_EVERY = 0.5  # seconds between two looks
_WORDS = {"running": "interrupted", "timeout": "timed out"}
"""States of jobs after the end of the head, for users, if they differ from the recorded ones."""
_OF_AGENTS = re.compile(
    r"(gpu|gres|tres|mem|cpu|core|ntasks|sockets-per|threads-per|thread-spec|time).*"
    r"|nodes|use-min-nodes|exclusive|mincpus|extra-node-info|distribution|hint|tmp|licenses|array|error"
)
"""Options of `sbatch` that do not suit the head, which is one process: requests for resources, their layout and
their time limit."""

# Near its time limit, and when its node is wanted, the head ends as by Ctrl-C, and the job goes back into the queue.
_BODY = """\
again=
trap 'again=1; kill -TERM $pid' USR2
trap 'kill -TERM $pid' TERM
{command} &
pid=$!
wait $pid; status=$?
while kill -0 $pid 2>/dev/null; do wait $pid; status=$?; done
if [ -n "$again" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $status
"""


@contextmanager
def _of_slurm() -> Iterator[None]:
    """Name Slurm in an error of its commands, which ends without a full stop."""
    try:
        yield
    except SlurmError as error:
        raise SlurmError(f"Slurm: {error}.", error.passes) from error


def submit_head(settings: SlurmSettings, directory: Path) -> str:
    """Submit the command of this process as a job that runs the sweep, and return the message.

    Args:
        settings: the sweep's settings.
        directory: the sweep's directory.

    Raises:
        TrainyardError: this process was not started from a script or a module, an earlier head is in the queue, or
            Slurm rejects this job or the agents.
    """
    started = StartedAs.now()
    if started is None:
        accepted = "false, because Slurm can only run a sweep that was started from a script or a module"
        raise ConfigError("hydra.launcher.detach", True, accepted)
    check_gone(directory)
    SlurmPool(directory, settings.resources, 1).check()  # now, because nobody may watch the head when it checks them
    own = [shell_override("hydra.sweep.dir", directory), "hydra.launcher.detach=false"]
    given = [word for word in sys.argv[1:] if not word.startswith(("hydra.launcher.detach", "hydra.sweep.dir="))]
    command = " ".join([shlex.join([sys.executable, *started.command, *given]), *own])
    folder = directory / FOLDER
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lines = header(head_options(settings, directory))
    if (whole := os.environ.get(WHOLE)) is not None:  # the job gets this environment, where Hydra's variable is changed
        lines.append(f"export HYDRA_FULL_ERROR={whole or 0}")
    script, output = folder / _SCRIPT, folder / _OUTPUT
    before = {file: file.read_bytes() if file.exists() else None for file in (script, output)}
    script.write_text("\n".join([*lines, *(settings.setup or ()), _BODY.format(command=command)]))
    output.write_text("")
    try:
        number = slurm_commands.submit(script)
    except SlurmError as error:
        for file, content in before.items():  # an earlier head's number remains, so `attach` shows its output
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)
        for each in made:
            each.rmdir()
        raise TrainyardError(
            f"The job that runs the sweep could not be submitted: {error}. This job requests one CPU and no GPU. To "
            "run the sweep in this terminal instead, use hydra.launcher.detach=false."
        ) from None
    note_number(directory, number)
    place = shell_path(directory)
    return (
        f"Slurm job {number} runs this sweep.\n"
        f"  to watch it:  trainyard sweep attach {place}\n"
        f"  to end it:    trainyard sweep cancel {place}"
    )


def head_options(settings: SlurmSettings, directory: Path) -> Mapping[str, Any]:
    """Return the options of `sbatch` for the job that runs a sweep: those of the agents, without their requests for
    resources."""
    kept = {name: each for name, each in settings.resources.options().items() if not _OF_AGENTS.fullmatch(name)}
    return kept | {
        "job-name": head_name(directory),
        "output": str(directory / FOLDER / _OUTPUT),
        "open-mode": "append",
        "chdir": str(Path.cwd()),
        "ntasks": 1,
        "cpus-per-task": 1,
        "requeue": True,
        "signal": f"B:USR2@{settings.signal_delay_s}",
    }


def head_name(directory: Path) -> str:
    """Return the name of the job that runs a sweep."""
    return f"{name_of(directory)}-head"


@_of_slurm()
def attach(directory: Path) -> None:
    """Print the output of the head of a sweep, from the beginning, until it has ended.

    While Slurm's controller does not respond, it is asked again.

    Raises:
        TrainyardError: no head was submitted, or it has ended without having run all jobs.
    """
    number = _number(directory)
    read_to, told, in_queue = 0, "", True
    while in_queue:
        line = ""
        try:
            job = slurm_commands.queued(number)
            in_queue = job is not None
            if job is not None and job.state == "PENDING":
                line = _told_pending(job, again=read_to > 0)
        except SlurmError as error:
            if not error.passes:
                raise
            line = f"Slurm: {error}. Trying again."
        with (directory / FOLDER / _OUTPUT).open("rb") as file:
            file.seek(read_to)
            content = file.read()
        read_to += len(content)
        print(content.decode(errors="replace"), end="", flush=True)
        if line and line != told:
            print(line, flush=True)
        told = line
        time.sleep(_EVERY if in_queue else 0)
    found = _jobs(directory)
    if found is None or not _is_over(found):
        how = continuation(directory, recorded=(directory / MULTIRUN).is_file())
        hint = ""
        if found is not None and any(found.states[num] == "paused" for num in found.held):
            command = f"trainyard sweep resume {shell_path(directory)} JOB"
            hint = f" To also resume a job that a user has paused, first run `{command}`."
        raise TrainyardError(
            f"Slurm job {number}, which ran this sweep, has ended: {_counts(found)}. To continue the sweep, "
            f"{how}.{hint}"
        )


def _told_pending(job: QueuedJob, *, again: bool) -> str:
    """Return the state of the head while it waits, for users.

    Args:
        job: the head.
        again: whether it has run before, and was queued again.
    """
    why = "" if job.reason == "None" else f": {job.reason}"  # Slurm has not looked at the job yet
    if again:
        return f"Slurm job {job.place} is queued again{why}. The sweep continues when this job starts."
    return f"Slurm job {job.place} is pending{why}."


@_of_slurm()
def cancel(directory: Path) -> None:
    """End the head of a sweep and its agents: jobs save a checkpoint first.

    Raises:
        TrainyardError: no head was submitted.
    """
    number = _number(directory)
    until, asked = time.monotonic() + 120, False
    while time.monotonic() < until:
        try:
            job = slurm_commands.queued(number)
            if job is None:
                break
            if job.state == "PENDING":  # it has no process; scancel would wait for one before it sends a signal
                slurm_commands.cancel([number])
            elif not asked:
                slurm_commands.cancel([number], "--batch", "--signal=TERM")
                asked = True
        except SlurmError as error:
            if not error.passes:
                raise
        time.sleep(_EVERY)
    slurm_commands.cancel([number])
    slurm_commands.cancel([job.place for job in slurm_commands.queue(name_of(directory))])
    print(f"Slurm job {number} has ended; {_counts(_jobs(directory))}.")


def _number(directory: Path) -> str:
    number = number_of(directory)
    if number is None:
        hint = (
            "DIR is the hydra.sweep.dir of a sweep started with hydra.launcher.detach=true. To stop any other sweep, "
            "press Ctrl-C in its terminal."
        )
        raise ConfigError("DIR", str(directory), "the directory of a detached sweep", hint=hint)
    if shutil.which("squeue") is None:
        raise TrainyardError("squeue is not on the PATH. Run this command on a machine of the Slurm cluster.")
    return number


def _jobs(directory: Path) -> SweepState | None:
    """Return the jobs of a sweep after the end of the head; None if there are none."""
    try:
        found = SweepState.read(directory)
    except ConfigError:
        return None
    return found if found.states else None


def _is_over(found: SweepState) -> bool:
    """Return whether no job is left to run, except by a user who has paused it."""
    return all(state in FINAL or num in found.held for num, state in found.states.items())


def _counts(found: SweepState | None) -> str:
    """Return the number of jobs in each state, for users."""
    if found is None:
        return "no job has started"
    states = Counter(_WORDS.get(state, state) for state in found.states.values())
    return ", ".join(f"{counted(count, 'job')} {state}" for state, count in states.items())
