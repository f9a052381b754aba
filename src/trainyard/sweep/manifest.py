"""`manifest.jsonl` in a sweep's directory: what became of each job, so that the same command finishes what is left.

One JSON object a line, appended and never changed; a last line that was cut off is cut away when the file is opened.

| kind | fields |
|---|---|
| `job` | `num`, `overrides`: the job's definition, once |
| `state` | `num`, `state` (`running` or a `TaskState`), `time`, `attempt`, `seconds`, `objective`, `error`, `width` |

`width` says how many jobs trained as one program, where they did; `seconds` are then those of them all.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainyard.errors import TrainyardError

FILE = "manifest.jsonl"


@dataclass
class Entry:
    """What is known of a job: its overrides, its last state, and what came of it."""

    overrides: list[str]
    state: str = "waiting"
    seconds: float | None = None
    objective: Any = None
    error: str | None = None
    width: int = 1

    @property
    def cost(self) -> float | None:
        """The seconds of a slot that it took."""
        return None if self.seconds is None else self.seconds / self.width


@dataclass
class Manifest:
    """The jobs of a sweep by number."""

    path: Path
    entries: dict[int, Entry] = field(default_factory=dict)

    @classmethod
    def open(cls, directory: Path) -> Manifest:
        """The manifest in a directory, read as far as it is whole; an absent one is empty."""
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
                continue  # a line that a crash of the machine left as zeros
        return manifest

    def define(self, num: int, overrides: Sequence[str]) -> None:
        """Note a job, or hold it to what was noted.

        Raises:
            TrainyardError: the job of this number was another one.
        """
        self.check(num, overrides)
        if num not in self.entries:
            self._append({"kind": "job", "num": num, "overrides": list(overrides)})

    def check(self, num: int, overrides: Sequence[str]) -> None:
        """Hold a job to what was noted, if anything was.

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
        """Keep other processes from running the same sweep.

        Raises:
            TrainyardError: one does already.
        """
        fd = os.open(self.path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise TrainyardError(f"{self.path.parent}: another process is running this sweep.") from error
        except OSError:
            pass  # a file system without locks: nobody can be kept out
        try:
            yield
        finally:
            os.close(fd)

    def is_done(self, nums: Iterable[int]) -> bool:
        """Whether these jobs, and all others that are known, have come to their end."""
        return all(num in self.entries for num in nums) and all(e.state == "done" for e in self.entries.values())

    def clear(self) -> None:
        """Forget all jobs."""
        os.truncate(self.path, 0)
        self.entries.clear()

    def entry(self, num: int, overrides: Sequence[str]) -> Entry:
        """What is known of a job, without noting anything."""
        return self.entries.get(num) or Entry(list(overrides))

    def note(self, num: int, state: str, **fields: Any) -> None:
        """Note that a job is in a state."""
        self._append({"kind": "state", "num": num, "state": state, "time": time.time(), **fields})

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, default=_plain) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())
        self._take(json.loads(line))

    def _take(self, record: dict[str, Any]) -> None:
        if record["kind"] == "job":
            self.entries.setdefault(record["num"], Entry(record["overrides"]))
        elif record["kind"] == "state":
            entry = self.entries[record["num"]]
            entry.state = record["state"]
            if "seconds" in record:
                entry.seconds, entry.width = record["seconds"], record.get("width", 1)
            entry.objective = record.get("objective", entry.objective)
            entry.error = record.get("error")


def _plain(value: Any) -> Any:
    """A number of numpy's or torch's as Python's; of anything else, what it prints."""
    try:
        return float(value)
    except Exception:
        return str(value)
