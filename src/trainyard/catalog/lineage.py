"""Lineage of a job of a sweep: its ancestors and lanes, according to the manifest of the sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainyard.catalog.find import SWEEP
from trainyard.catalog.stored_run import CONFIG, StoredRun
from trainyard.config.saved import saved_values
from trainyard.errors import TrainyardError
from trainyard.sweep.inheritance import config_until
from trainyard.sweep.records import is_record

INHERITED = "inherited"
"""Folder of a repeated run with the checkpoint from which its last heir started."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Segment:
    """Part of a lineage: one job, with one config, in one lane.

    Attributes:
        num: the job.
        config: the file of its resolved config.
        end: the epoch, or iteration, at which the segment ends; None for the end of the training.
        by: which of the two: `epoch` or `iter`.
        heir: whether it starts from the checkpoint of the previous job in the lineage.
        keys: the keys whose values differ from those in the checkpoint from which it continues: its `resume_override`.
        lane: its row in the stack.
        width: the lanes of the stack; 0 if it trained alone.
        threads: threads of its process.
    """

    num: int
    config: Path
    end: int | None
    by: str
    heir: bool
    keys: tuple[str, ...]
    lane: int
    width: int
    threads: int


@dataclass(frozen=True)
class _Span:
    """Where a job trains from a position on."""

    start: int
    lane: int
    width: int
    threads: int


@dataclass
class _Job:
    subdir: str
    by: str = "epoch"
    at: int = 0  # where it has reported last
    spans: list[_Span] = field(default_factory=list)
    inherited: list[Record] = field(default_factory=list)

    def take(self, task: Record, index: int) -> None:
        """Record how the job trains from now on: as the entry with this index in a task."""
        lanes, begun = task.get("lanes"), task.get(f"{self.by}s")
        start = int(begun[index]) if begun else self.at
        width = task.get("width") or (len(task["nums"]) if len(task["nums"]) > 1 else 0)
        lane = lanes[index] if lanes else index
        self.spans = [span for span in self.spans if span.start < start]
        self.spans.append(_Span(start, lane, width, task["threads"]))

    def between(self, begin: int, end: int | None) -> list[_Span]:
        """Return the spans between two positions."""
        before = [span for span in self.spans if span.start <= begin][-1:]
        return before + [span for span in self.spans if begin < span.start and (end is None or span.start < end)]


def lineage_of(run: StoredRun) -> list[Segment]:
    """Return the segments of a job's training, in order; none for a run that trained alone, from its beginning.

    Raises:
        TrainyardError: it continues from another job, whose config does not exist.
    """
    directory = run.directory.absolute()
    for sweep in directory.parents[:3]:
        if (sweep / SWEEP).is_file():
            jobs = _jobs(sweep / SWEEP)
            for num, job in jobs.items():
                if (sweep / job.subdir).absolute() == directory:
                    found = _chain(sweep, jobs, num)
                    return found if len(found) > 1 or any(each.width for each in found) else []
    return []


def _jobs(manifest: Path) -> dict[int, _Job]:
    jobs: dict[int, _Job] = {}
    for record in _records(manifest):
        kind = record.get("kind")
        if kind == "job":
            subdir = record.get("subdir")
            jobs[record["num"]] = _Job(str(record["num"]) if subdir is None else subdir)
            if record.get("rungs"):
                jobs[record["num"]].by = record["rungs"]["by"]
        elif kind == "report" and record["num"] in jobs:
            jobs[record["num"]].at = record["at"]
        elif kind == "inherited" and record["num"] in jobs and record["source"] in jobs:
            jobs[record["num"]].inherited.append(record)
        elif kind == "decisions":
            for task in record["tasks"]:
                for index, num in enumerate(task["nums"]):
                    if num in jobs:
                        jobs[num].take(task, index)
    return jobs


def _records(manifest: Path) -> Iterator[Record]:
    for line in manifest.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # of a sweep that was killed
        if is_record(record):
            yield record


def _chain(sweep: Path, jobs: Mapping[int, _Job], num: int) -> list[Segment]:
    """Return the segments of a job, after the segments of the jobs from which it inherited."""
    found: list[Segment] = []
    end: int | None = None
    while True:
        job = jobs[num]
        before = [each for each in job.inherited if end is None or each["at"] < end]
        origin = before[-1] if before else None
        begin = 0 if origin is None else int(origin["at"])
        later = [int(each["at"]) for each in job.inherited if each["at"] > begin or origin is None]
        config = _config(sweep / job.subdir, num, later[0] if later else None)
        keys = () if origin is None else tuple(origin["keys"])
        spans: Sequence[_Span] = job.between(begin, end) or [_Span(begin, 0, 0, 1)]
        if len(spans) > 1:
            loop = saved_values(config).get("loop") or {}
            spans = [spans[0], *(span for span in spans[1:] if _is_validated(loop, span.start))]
        ends = [*(span.start for span in spans[1:]), end]
        found = [
            Segment(num, config, until, job.by, origin is not None and not k, keys, span.lane, span.width, span.threads)
            for k, (span, until) in enumerate(zip(spans, ends, strict=True))
        ] + found
        if origin is None:
            return found
        num, end = int(origin["source"]), begin


def _is_validated(loop: Mapping[str, Any], at: int) -> bool:
    """Return whether a loop validates after this epoch, so that the training can pause there."""
    regular = at >= loop.get("val_begin", 1) and at % loop.get("val_interval", 1) == 0
    return regular and not loop.get("dynamic_intervals")


def _config(directory: Path, num: int, until: int | None) -> Path:
    """Return the file of the config that a job had until it continued from another job, or has now."""
    file = directory / CONFIG if until is None else config_until(directory, until)
    if not file.is_file():
        raise TrainyardError(f"Job #{num} cannot be repeated, because its config {file} does not exist.")
    return file
