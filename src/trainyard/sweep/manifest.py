"""Manifest of a sweep: `manifest.jsonl`, the log of its scheduler, from which the same command continues the sweep.

One JSON object per line, appended and never changed. An incomplete last line is removed when the file is opened.
docs/sweeps.md has the table of the kinds of records. Those of `trainyard.sweep.event_records` are the scheduler's
events: replaying them restores its state.

Every event and every decision is recorded before it takes effect. The last decision on a job is followed when the sweep
is continued: results are bit-identical with the recorded decisions on the same kind of CPU; otherwise, they are equal
up to rounding. A sweep whose manifest contains no decisions is planned from the start.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from trainyard.application import StartedAs
from trainyard.errors import TrainyardError, counted, quoted
from trainyard.files import append_whole, despite_absence
from trainyard.quoting import shell_override, shell_path
from trainyard.sweep.decisions import Decision, KnownFit
from trainyard.sweep.entry import Entry
from trainyard.sweep.event_records import Record, event_of, origin_of, to_record
from trainyard.sweep.events import FIRST_CLONE, Event, Inherited, Proposed
from trainyard.sweep.identity import differences
from trainyard.sweep.records import encode, parsed
from trainyard.sweep.steering import KIND, MANIFEST, Command, acknowledgement, run_elsewhere

FILE = MANIFEST
FORMAT = 2
"""Version of the format that is written. Older manifests without a version can be read."""


@dataclass
class Manifest:
    """Manifest of a sweep, as it was read and then appended to.

    Attributes:
        entries: its jobs by number.
        application: how the sweep was last started; None if it has only been started without a file, or not yet.
        fits: the measured fits, by kind.
        answered: the ids of the commands that are answered.
        proposer: the identity of the proposer whose jobs these are; None if it has none.
        grid: the number of jobs of the grid, some of which may not be recorded yet; 0 if it is not a grid.
        next_num: the number after those of all jobs except clones.
        next_clone: the number of the next clone.
        patience: seconds for which its directory may be missing, on a network disk.
    """

    path: Path
    entries: dict[int, Entry] = field(default_factory=dict)
    application: StartedAs | None = None
    fits: dict[str, KnownFit] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    proposer: Mapping[str, Any] | None = None
    grid: int = 0
    next_num: int = 0
    next_clone: int = FIRST_CLONE
    patience: float = 0.0

    @classmethod
    def open(cls, directory: Path, follow: Callable[[Event], object] | None = None) -> Manifest:
        """Read the manifest in a directory, as far as it is complete; an absent one is empty.

        Args:
            directory: the sweep's directory.
            follow: called with each of the scheduler's events in it, in order.

        Raises:
            TrainyardError: a newer version has written it.
        """
        manifest = cls(directory / FILE)
        try:
            content = manifest.path.read_bytes()
        except FileNotFoundError:
            return manifest
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(manifest.path, len(whole))
        with _kept():
            for record in parsed(whole):
                try:
                    manifest._take(record)
                    if follow is not None and (event := event_of(record)) is not None:
                        follow(event)
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # a line of something else, left by a crash of the machine
        return manifest

    def begin(self, application: StartedAs | None, proposer: Mapping[str, Any] | None = None, grid: int = 0) -> None:
        """Record, the first time, the version of the format, the proposer, and the number of jobs of the
        grid, which may grow later; and how this process was started, if this differs from the last start."""
        if not self.entries and self.application is None:
            self._append({"kind": "manifest", "format": FORMAT})
        if application is not None and application != self.application:
            self._append({"kind": "application", **asdict(application)})
        if self.proposer is None and proposer:
            self._append({"kind": "proposer", "identity": dict(proposer)})
        if grid > self.grid:
            self._append({"kind": "grid", "jobs": grid})

    def check_grid(self, jobs: Sequence[Sequence[str]]) -> None:
        """Check that a grid contains all jobs of the recorded sweep.

        Args:
            jobs: the overrides of each job of the grid, in order.

        Raises:
            TrainyardError: a recorded job differs, or the recorded sweep has more jobs.
        """
        for num, overrides in enumerate(jobs):
            self.check(num, overrides)
        count = max(self.grid, self.next_num)
        if len(jobs) < count:
            raise TrainyardError(
                f"{self.path.parent} contains a sweep of {count:,} jobs, but this command has only "
                f"{counted(len(jobs), 'job')}. To continue the sweep, run `trainyard sweep resume "
                f"{shell_path(self.path.parent)}`. For another sweep, use another hydra.sweep.dir."
            )

    def check_proposer(self, identity: Mapping[str, Any]) -> None:
        """Check that the recorded jobs were proposed by the current proposer.

        Raises:
            TrainyardError: they were proposed by another proposer or search.
        """
        if self.entries and (found := differences(self.proposer or {}, identity)):
            raise TrainyardError(
                f"The sweep in {self.path.parent} was started with {', '.join(found)}. "
                "To continue the sweep, use the same settings. For another sweep, use another hydra.sweep.dir."
            )

    def check_application(self, application: StartedAs | None) -> None:
        """Check that this process was started in the same way as the sweep.

        Raises:
            TrainyardError: the sweep belongs to another application.
        """
        if self.application is not None and application is not None:
            self.application.check(application, self.path.parent)

    def define(self, num: int, overrides: Sequence[str], subdir: str | None = None) -> None:
        """Record a job, or check that it is the recorded one.

        Args:
            num: its number.
            overrides: its overrides.
            subdir: its directory below the sweep's.

        Raises:
            TrainyardError: the recorded job with this number differs.
        """
        self.define_all([Proposed(num, tuple(overrides), subdir=subdir)])

    def define_all(self, jobs: Iterable[Proposed]) -> list[Event]:
        """Record jobs as `define` does, and return the events of those that are new."""
        new: dict[int, Record] = {}
        for job in jobs:
            self.check(job.num, job.overrides)
            if job.num not in self.entries:
                new[job.num] = to_record(job)
        return _events(self._append(*new.values()))

    def check(self, num: int, overrides: Sequence[str]) -> None:
        """Check that a job is the recorded one, if there is one.

        Raises:
            TrainyardError: the recorded job with this number differs.
        """
        known = self.entries.get(num)
        if known is not None and known.overrides != list(overrides):
            raise TrainyardError(
                f"{self.path.parent} contains another sweep: its job {num} is {quoted(' '.join(known.overrides))}, but "
                f"here the job is {quoted(' '.join(overrides))}. Use another hydra.sweep.dir for this sweep."
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from running the same sweep, inside a `with` block.

        Raises:
            TrainyardError: another process runs it already.
        """
        # On NFS, an exclusive lock needs a file that is open for writing.
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise run_elsewhere(self.path.parent) from error
        except OSError:
            pass  # a file system without locks cannot exclude other processes
        try:
            yield
        finally:
            os.close(fd)

    def is_done(self, nums: Iterable[int]) -> bool:
        """Return whether these jobs, and all other known ones, are done."""
        return all(num in self.entries for num in nums) and not any(e.is_left for e in self.entries.values())

    def clear(self) -> None:
        """Remove all records."""
        os.truncate(self.path, 0)
        self.entries.clear()
        self.fits.clear()
        self.answered.clear()
        self.application = self.proposer = None
        self.grid = 0
        self.next_num, self.next_clone = 0, FIRST_CLONE

    def entry(self, num: int, overrides: Sequence[str]) -> Entry:
        """Return the entry of a job, without recording anything."""
        return self.entries.get(num) or Entry(list(overrides))

    @property
    def decisions(self) -> dict[int, Decision]:
        """Last decision on each job that has one."""
        return {num: entry.decision for num, entry in self.entries.items() if entry.decision is not None}

    def decide(self, decisions: Sequence[Decision]) -> None:
        """Record decisions on disk: all of them or, if this is cut off, none."""
        if decisions:
            tasks = [decision.record for decision in decisions]
            self._append({"kind": "decisions", "tasks": tasks, "time": time.time()}, sync=True)

    def measured(self, fits: Mapping[str, KnownFit]) -> None:
        """Record measured fits that are not recorded yet."""
        for key, fit in fits.items():
            if self.fits.get(key) != fit:
                self._append({"kind": "fit", "key": key, **asdict(fit)})

    def log(self, *events: Event, answer: Record | None = None) -> list[Event]:
        """Record events, and return them as they will be read back.

        Args:
            events: the events.
            answer: the acknowledgement of the command that caused them, which is written to disk with them.
        """
        now = time.time()
        records = [to_record(event) for event in events] if answer is None else [answer, *map(to_record, events)]
        lines = self._append(*({**record, "time": now} for record in records), sync=answer is not None)
        return _events(lines)

    def answer(self, command: Command, *, refusal: str = "", told: str = "") -> None:
        """Record the answer to a command on disk, before the command is executed, so that it is executed only once.

        Args:
            command: the command.
            refusal: why it is refused; empty if it is accepted.
            told: the effect on the job, for users.
        """
        self._append({**acknowledgement(command, refusal, told), "time": time.time()}, sync=True)

    def note(self, num: int, state: str, **fields: Any) -> None:
        """Record the state of a job."""
        self._append({"kind": "state", "num": num, "state": state, "time": time.time(), **fields})

    @cached_property
    def _then(self) -> str:
        """The next step for the user after a full disk."""
        return f"use the same command with {shell_override('hydra.sweep.dir', self.path.parent)}"

    def _append(self, *records: Record, sync: bool = False) -> list[Record]:
        lines = [encode(record) for record in records]
        content = "".join(f"{line}\n" for line in lines).encode()

        def write() -> None:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                append_whole(fd, content, self.path, self._then)
                if sync:
                    os.fsync(fd)
            finally:
                os.close(fd)

        despite_absence(self.path.parent, write, self.patience)
        found = [json.loads(line) for line in lines]
        for record in found:
            self._take(record)
        return found

    def _take(self, record: Record) -> None:
        take = _TAKES.get(record["kind"])
        if take is not None:
            take(self, record)

    def _take_format(self, record: Record) -> None:
        if record["format"] > FORMAT:
            raise TrainyardError(
                f"{self.path} was written by a newer version of Trainyard: its format is {record['format']}, and this "
                f"version reads formats up to {FORMAT}. Update Trainyard."
            )

    def _take_job(self, record: Record) -> None:
        num = record["num"]
        origin = origin_of(record.get("origin"))
        self.entries.setdefault(num, Entry(record["overrides"], record.get("subdir"), origin=origin))
        if origin is not None:
            self.next_clone = max(self.next_clone, num + 1)
        else:
            self.next_num = max(self.next_num, num + 1)

    def _take_application(self, record: Record) -> None:
        self.application = StartedAs.of(record)

    def _take_proposer(self, record: Record) -> None:
        self.proposer = record["identity"]

    def _take_grid(self, record: Record) -> None:
        self.grid = max(self.grid, record["jobs"])

    def _take_fit(self, record: Record) -> None:
        self.fits[record["key"]] = KnownFit(
            **{each.name: record[each.name] for each in fields(KnownFit) if each.name in record}
        )

    def _take_decisions(self, record: Record) -> None:
        for task in record["tasks"]:
            decision = Decision.read(task)
            for num in decision.nums:
                self.entries[num].decision = decision

    def _take_inherited(self, record: Record) -> None:
        event = event_of(record)
        assert isinstance(event, Inherited)
        entry = self.entries[event.num]
        entry.overrides = list(event.overrides)
        entry.lineage.append(event)

    def _take_answer(self, record: Record) -> None:
        self.answered.add(record["id"])

    def _take_queued(self, record: Record) -> None:
        for unit in record["units"]:
            for num in unit if isinstance(unit, list) else unit["nums"]:
                self.entries[num].state = "waiting"

    def _take_state(self, record: Record) -> None:
        entry = self.entries[record["num"]]
        entry.state = record["state"]
        if "seconds" in record:
            entry.seconds, entry.width = record["seconds"], record.get("width", 1)
        entry.objective = record.get("objective", entry.objective)
        entry.error = record.get("error")
        entry.by_hand = record.get("by_hand", False)


_TAKES: dict[str, Callable[[Manifest, Record], None]] = {
    "manifest": Manifest._take_format,
    "application": Manifest._take_application,
    "job": Manifest._take_job,
    "proposer": Manifest._take_proposer,
    "grid": Manifest._take_grid,
    "fit": Manifest._take_fit,
    "decisions": Manifest._take_decisions,
    "queued": Manifest._take_queued,
    "inherited": Manifest._take_inherited,
    KIND: Manifest._take_answer,
    "state": Manifest._take_state,
}


@contextmanager
def _kept() -> Iterator[None]:
    """Disable garbage collection inside the block, because nearly all objects are kept and would be visited
    repeatedly."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _events(records: Iterable[Record]) -> list[Event]:
    return [event for record in records if (event := event_of(record)) is not None]
