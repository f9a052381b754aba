"""Commands that steer a running sweep: files in `commands/` of its directory, which the head of the sweep reads.

A command is written under a temporary name, flushed and renamed; the file is never changed. The head reads the folder
on its regular tick, executes the commands in the order of their numbers, and records an acknowledgement of each in the
manifest before it executes the command. If a head is killed in between, the next one finds the acknowledgement, and the
commands that have none.

    head:  for command in folder.pending(acknowledged):
               manifest.append(acknowledgement(command, refusal))    # with fsync
               …                                                     # unless it is refused
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
import uuid
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from trainyard.errors import ConfigError, TrainyardError

log = logging.getLogger(__name__)

FOLDER = "commands"
MANIFEST = "manifest.jsonl"
"""Name of the manifest in the directory of a sweep."""
KIND = "command"
"""Kind of the records of acknowledgements in the manifest."""

Action = Literal["stop", "pause", "resume", "clone"]
ACTIONS: tuple[Action, ...] = get_args(Action)


@dataclass(frozen=True)
class Command:
    """Command about one job.

    Attributes:
        id: its ID, which starts with its number, so that IDs have the order of the commands.
        action: stop for good, pause (a checkpoint and no process), resume a paused job, or clone: a new job that starts
            from the newest checkpoint of this one.
        job: the number of the job.
        overrides: the changes of a clone.
        time: the time of the request, in Unix seconds.
    """

    id: str
    action: Action
    job: int
    overrides: tuple[str, ...] = ()
    time: float = field(default=0.0, compare=False)

    def is_same(self, action: Action, job: int, overrides: Sequence[str]) -> bool:
        """Return whether this command makes the same request."""
        return (self.action, self.job, self.overrides) == (action, job, tuple(overrides))

    def __str__(self) -> str:
        return " ".join([f"{self.action} #{self.job}", *self.overrides])


@dataclass(frozen=True)
class Acknowledgement:
    """Answer of a head to a command.

    Attributes:
        accepted: whether the head executes the command.
        told: the reason for a refusal, or the effect on the job, for users.
    """

    accepted: bool
    told: str = ""


def acknowledgement(command: Command, refusal: str = "", told: str = "") -> dict[str, Any]:
    """Return the manifest's record of the answer to a command, without its time.

    Args:
        command: the command.
        refusal: why it is refused; empty if it is accepted.
        told: the effect on the job if it is accepted, such as `#12 saves a checkpoint and pauses`.
    """
    return {
        "kind": KIND,
        "id": command.id,
        "action": command.action,
        "num": command.job,
        "overrides": list(command.overrides),
        "accepted": not refusal,
        "told": refusal or told,
    }


def acknowledged(record: Mapping[str, Any]) -> tuple[str, Acknowledgement] | None:
    """Return the id of the command that a record of the manifest answers, and the answer; None for other records."""
    if record.get("kind") != KIND:
        return None
    return str(record["id"]), Acknowledgement(bool(record["accepted"]), str(record.get("told", "")))


class CommandFolder:
    """Folder of the commands to one sweep. Several processes may give commands concurrently.

    Args:
        directory: the sweep's directory.
    """

    def __init__(self, directory: Path) -> None:
        self._folder = directory / FOLDER
        self._known: dict[str, Command | None] = {}

    def give(
        self, action: Action, job: int, overrides: Sequence[str], acknowledged: Container[str]
    ) -> tuple[Command, bool]:
        """Write a command to disk. If the last command for this job is pending and makes the same request, return it
        instead.

        Args:
            action: the action.
            job: the number of the job.
            overrides: the changes of a clone.
            acknowledged: the ids of the commands that are acknowledged.

        Returns:
            The command, and whether it is new.
        """
        self._folder.mkdir(exist_ok=True)
        with self._locked():
            waiting = [command for command in self.pending(acknowledged) if command.job == job]
            if waiting and waiting[-1].is_same(action, job, overrides):
                return waiting[-1], False
            number = max((int(name.partition("-")[0]) for name in self._names()), default=0) + 1
            command = Command(f"{number:06d}-{uuid.uuid4().hex[:8]}", action, job, tuple(overrides), time.time())
            temporary = self._folder / f".{command.id}.tmp"
            try:
                with temporary.open("x", encoding="utf-8") as file:
                    json.dump(asdict(command), file)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.rename(self._folder / f"{command.id}.json")
            finally:
                temporary.unlink(missing_ok=True)
            _sync(self._folder)
        return command, True

    def pending(self, acknowledged: Container[str]) -> list[Command]:
        """Return the commands that are not acknowledged, in the order in which they were given.

        It can be called on each tick: each file is read once, and without commands, it needs only one system call.
        """
        found = []
        for name in self._names():
            if name not in acknowledged and (command := self._read(name)) is not None:
                found.append(command)
        return found

    def clear(self) -> None:
        """Remove all commands of a sweep whose manifest is cleared."""
        for name in self._names():
            (self._folder / f"{name}.json").unlink(missing_ok=True)
        self._known.clear()

    def _names(self) -> list[str]:
        """Return the IDs of the commands in order. Other files are ignored."""
        try:
            names = [entry[:-5] for entry in os.listdir(self._folder) if entry.endswith(".json")]  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted((name for name in names if name.partition("-")[0].isdecimal()), key=_place)

    def _read(self, name: str) -> Command | None:
        if name not in self._known:
            try:
                values = json.loads((self._folder / f"{name}.json").read_bytes())
                command = Command(**{**values, "id": name, "overrides": tuple(values["overrides"])})
                if command.action not in ACTIONS or not isinstance(command.job, int):
                    raise ValueError(f"{command.action} {command.job}")
                self._known[name] = command
            except (OSError, ValueError, KeyError, TypeError) as error:
                what = "cannot be read" if isinstance(error, OSError) else "is not a valid command"
                why = f"the key {error} is missing" if isinstance(error, KeyError) else error
                log.warning("%s %s and was skipped: %s", self._folder / f"{name}.json", what, why)
                self._known[name] = None
        return self._known[name]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):  # a file system without locks: of two commands at once, either may be the first
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def in_words(state: str) -> str:
    """Return the state of a job as the predicate of a sentence: `is done`, `has failed`."""
    return {"failed": "has failed", "timeout": "has timed out", "lost": "was lost"}.get(state, f"is {state}")


def _place(name: str) -> tuple[int, str]:
    return int(name.partition("-")[0]), name


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_run(directory: Path) -> bool:
    """Return whether a process runs the sweep in a directory and therefore holds the lock of the manifest."""
    fd = os.open(directory / MANIFEST, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # unknown on a file system without locks
    finally:
        os.close(fd)
    return False


def no_sweep(directory: Path, file: str = MANIFEST) -> ConfigError:
    """Return the error about a directory that is not that of a sweep, because it does not contain a file."""
    hint = "DIR is the hydra.sweep.dir of a sweep that has started. `trainyard sweep ls` lists the sweeps."
    return ConfigError("DIR", str(directory), f"the directory of a sweep, which has a {file}", hint=hint)


def run_elsewhere(directory: Path) -> TrainyardError:
    """Return the error about a sweep that another process runs."""
    return TrainyardError(
        f"{directory}: another process is running this sweep. Wait until that process ends, or use another "
        "hydra.sweep.dir."
    )
