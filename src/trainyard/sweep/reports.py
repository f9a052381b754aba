"""Reports of jobs for the head: a job signals that it has reached a position, and its journal contains the value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainyard.sweep.events import Ended, Event, Paused, Reported
from trainyard.sweep.plan import Job
from trainyard.track import journal
from trainyard.track.sweep_position import PARAMETERS, RUNG, Rungs


@dataclass
class _Reader:
    """Reader of one job's journal.

    Attributes:
        metrics: the names of the values that are reported in addition to the objective.
        offset: the position up to which it was read.
        values: the values of the objective, by position.
        latest: the latest value of each of `metrics`.
        others: their values at a rung, by position.
    """

    path: Path
    objective: str
    rungs: Rungs
    metrics: Sequence[str]
    offset: int = 0
    values: dict[int, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    others: dict[int, dict[str, float]] = field(default_factory=dict)

    def value(self, at: int) -> float | None:
        if at not in self.values:
            for record, end in journal.read(self.path, self.offset):
                self.offset = end
                if record["kind"] == "metrics":
                    self._read(record)
                elif record["kind"] == "tags" and RUNG in record["tags"]:  # follows all that is measured there
                    if PARAMETERS in self.metrics and PARAMETERS in record["tags"]:
                        self.latest[PARAMETERS] = float(record["tags"][PARAMETERS])
                    self.others.setdefault(int(record["tags"][RUNG]), dict(self.latest))
        return self.values.get(at)

    def _read(self, record: journal.Record) -> None:
        if self.objective in record["values"]:
            place = int(record.get("epoch", -1) if self.rungs.by == "epoch" else record["step"])
            self.values.setdefault(place, record["values"][self.objective])
        self.latest |= {name: record["values"][name] for name in self.metrics if name in record["values"]}


class Reports:
    """Values that jobs report, each once.

    Attributes:
        metrics: the names of the values that are reported in addition to the objective, if measured at a rung.
        last: the last report of each job: the position, and the value.
    """

    def __init__(self) -> None:
        self.metrics: Sequence[str] = ()
        self.last: dict[int, tuple[int, float]] = {}
        self._readers: dict[int, _Reader] = {}
        self._known: set[tuple[int, int]] = set()

    def begin(self, job: Job, rungs: Rungs | None) -> None:
        """Expect reports of a job that starts."""
        if rungs is not None:
            name = str(job.setting("objective"))
            self._readers[job.num] = _Reader(job.directory / journal.FILE, name, rungs, self.metrics)

    def told(self, event: Event) -> None:
        """Record a report that is in the manifest, or a job that reports no more."""
        if isinstance(event, Reported):
            self._known.add((event.num, event.at))
            self.last[event.num] = event.at, event.value
        elif isinstance(event, Ended | Paused):
            self._readers.pop(event.num, None)

    def is_known(self, num: int, at: int | None) -> bool:
        """Return whether the report of a job at a place is in the manifest."""
        return (num, at) in self._known

    def new(self, num: int, at: int) -> Reported | None:
        """Return the report of a job at a position; None if there is none, or if it is already known."""
        reader = self._readers.get(num)
        if reader is None or at not in reader.rungs.at or (num, at) in self._known:
            return None
        value = reader.value(at)
        return None if value is None else Reported(num, at, value, tuple(reader.others.get(at, {}).items()))
