"""Reports of jobs, as the head reads them: a job says that it has reached a place, and its journal has the value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainyard.sweep.events import Ended, Event, Paused, Reported
from trainyard.sweep.plan import Job
from trainyard.track import journal
from trainyard.track.sweep_position import Rungs


@dataclass
class _Reader:
    """Reader of one job's journal.

    Attributes:
        offset: how far it is read.
        values: what was found, by place.
    """

    path: Path
    objective: str
    rungs: Rungs
    offset: int
    values: dict[int, float]

    def value(self, at: int) -> float | None:
        if at not in self.values:
            for record, end in journal.read(self.path, self.offset):
                self.offset = end
                if record["kind"] == "metrics" and self.objective in record["values"]:
                    place = int(record.get("epoch", -1) if self.rungs.by == "epoch" else record["step"])
                    self.values.setdefault(place, record["values"][self.objective])
        return self.values.get(at)


class Reports:
    """Values that jobs report, each once.

    Attributes:
        last: what each job has reported last: the place, and the value.
    """

    def __init__(self) -> None:
        self.last: dict[int, tuple[int, float]] = {}
        self._readers: dict[int, _Reader] = {}
        self._known: set[tuple[int, int]] = set()

    def begin(self, job: Job, rungs: Rungs | None) -> None:
        """Expect reports of a job that starts."""
        if rungs is not None:
            name = str((job.values or {})["objective"])
            self._readers[job.num] = _Reader(job.directory / journal.FILE, name, rungs, 0, {})

    def told(self, event: Event) -> None:
        """Take notice of a report that is in the manifest, and of a job that reports no more."""
        if isinstance(event, Reported):
            self._known.add((event.num, event.at))
            self.last[event.num] = event.at, event.value
        elif isinstance(event, Ended | Paused):
            self._readers.pop(event.num, None)

    def is_known(self, num: int, at: int | None) -> bool:
        """Return whether the report of a job at a place is in the manifest."""
        return (num, at) in self._known

    def value(self, num: int, at: int) -> float | None:
        """Return the value that a job has reported at a place; None if it has no such, or it is known."""
        reader = self._readers.get(num)
        if reader is None or at not in reader.rungs.at or (num, at) in self._known:
            return None
        return reader.value(at)
