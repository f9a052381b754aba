"""Manifest of a sweep: `manifest.jsonl`, the state of each job, from which the same command continues the sweep.

One JSON object per line, appended and never changed. An incomplete last line is removed when the file is opened.

| kind | fields |
|---|---|
| `application` | `file`, `module`: how the sweep was started (`trainyard.sweep.application.StartedAs`), once |
| `job` | `num`, `overrides`, `subdir`: the job's definition and its directory (`hydra.sweep.subdir`), once |
| `fit` | `key`, `width`, `reason`, `note`, `tried`: the measured width of a kind of jobs (`decisions.KnownFit`) |
| `decisions` | `tasks`, `time`: how jobs train from now on, a list of `decisions.Decision` |
| `state` | `num`, `state` (`running` or a `TaskState`), `time`, `attempt`, `seconds`, `objective`, `error`, `width` |

`width` is the number of jobs that trained as one program, if any; `seconds` are then those of them all. Decisions are
recorded before they are acted on, and the last one on a job is followed when the sweep is continued: same bits for the
recorded decisions on the same kind of CPU; otherwise equal to rounding. A manifest without them is planned anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from trainyard.errors import TrainyardError
from trainyard.sweep.application import StartedAs
from trainyard.sweep.decisions import Decision, KnownFit

FILE = "manifest.jsonl"


@dataclass
class Entry:
    """Entry of a job: its overrides, its directory, how it trains, its last state and its result."""

    overrides: list[str]
    subdir: str | None = None
    decision: Decision | None = None
    state: str = "waiting"
    seconds: float | None = None
    objective: Any = None
    error: str | None = None
    width: int = 1

    @property
    def cost(self) -> float | None:
        """Seconds of slot time that the job took."""
        return None if self.seconds is None else self.seconds / self.width


@dataclass
class Manifest:
    """Manifest of a sweep, as it was read and then appended to.

    Attributes:
        entries: its jobs by number.
        application: how the sweep was started; None if it was not with a file, or nothing was recorded yet.
        fits: the measured fits, by kind.
    """

    path: Path
    entries: dict[int, Entry] = field(default_factory=dict)
    application: StartedAs | None = None
    fits: dict[str, KnownFit] = field(default_factory=dict)

    @classmethod
    def open(cls, directory: Path) -> Manifest:
        """Read the manifest in a directory, as far as it is complete; an absent one is empty."""
        manifest = cls(directory / FILE)
        try:
            content = manifest.path.read_bytes()
        except FileNotFoundError:
            return manifest
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(manifest.path, len(whole))
        for line in whole.splitlines():
            try:
                manifest._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # a line of zeros, left by a crash of the machine
        return manifest

    def begin(self, application: StartedAs | None) -> None:
        """Record how this process was started, the first time."""
        if self.application is None and application is not None:
            self._append({"kind": "application", "file": application.file, "module": application.module})

    def check_application(self, application: StartedAs | None) -> None:
        """Check that this process was started as the sweep was.

        Raises:
            TrainyardError: it is another application's sweep.
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
            TrainyardError: the job of this number was another one.
        """
        self.check(num, overrides)
        if num not in self.entries:
            self._append({"kind": "job", "num": num, "overrides": list(overrides), "subdir": subdir})

    def check(self, num: int, overrides: Sequence[str]) -> None:
        """Check that a job is the recorded one, if there is one.

        Raises:
            TrainyardError: the job of this number was another one.
        """
        known = self.entries.get(num)
        if known is not None and known.overrides != list(overrides):
            raise TrainyardError(
                f"{self.path.parent} holds another sweep: its job {num} is {' '.join(known.overrides)!r}, here it "
                f"is {' '.join(overrides)!r}. Give this sweep a hydra.sweep.dir of its own."
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from running the same sweep, inside a `with` block.

        Raises:
            TrainyardError: another process runs it already.
        """
        fd = os.open(self.path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise TrainyardError(f"{self.path.parent}: another process is running this sweep.") from error
        except OSError:
            pass  # a file system without locks cannot exclude other processes
        try:
            yield
        finally:
            os.close(fd)

    def is_done(self, nums: Iterable[int]) -> bool:
        """Return whether these jobs, and all other known ones, are done."""
        return all(num in self.entries for num in nums) and all(e.state == "done" for e in self.entries.values())

    def clear(self) -> None:
        """Remove all that was recorded."""
        os.truncate(self.path, 0)
        self.entries.clear()
        self.fits.clear()
        self.application = None

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
            tasks = [asdict(decision) for decision in decisions]
            self._append({"kind": "decisions", "tasks": tasks, "time": time.time()}, sync=True)

    def measured(self, fits: Mapping[str, KnownFit]) -> None:
        """Record measured fits that are not recorded yet."""
        for key, fit in fits.items():
            if self.fits.get(key) != fit:
                self._append({"kind": "fit", "key": key, **asdict(fit)})

    def note(self, num: int, state: str, **fields: Any) -> None:
        """Record the state of a job."""
        self._append({"kind": "state", "num": num, "state": state, "time": time.time(), **fields})

    def _append(self, record: dict[str, Any], *, sync: bool = False) -> None:
        line = json.dumps(record, default=_plain) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())
            if sync:
                os.fsync(file.fileno())
        self._take(json.loads(line))

    def _take(self, record: dict[str, Any]) -> None:
        if record["kind"] == "job":
            self.entries.setdefault(record["num"], Entry(record["overrides"], record.get("subdir")))
        elif record["kind"] == "application":
            self.application = StartedAs(record["file"], record["module"])
        elif record["kind"] == "fit":
            self.fits[record["key"]] = KnownFit(*(record[each.name] for each in fields(KnownFit)))
        elif record["kind"] == "decisions":
            for task in record["tasks"]:
                decision = Decision(**{**task, "nums": tuple(task["nums"])})
                for num in decision.nums:
                    self.entries[num].decision = decision
        elif record["kind"] == "state":
            entry = self.entries[record["num"]]
            entry.state = record["state"]
            if "seconds" in record:
                entry.seconds, entry.width = record["seconds"], record.get("width", 1)
            entry.objective = record.get("objective", entry.objective)
            entry.error = record.get("error")


def _plain(value: Any) -> Any:
    """Convert a number of numpy or torch to Python's, and anything else to its text."""
    try:
        return float(value)
    except Exception:
        return str(value)
