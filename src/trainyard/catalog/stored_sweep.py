"""Stored sweep: the jobs of a sweep according to its manifest, while it runs and afterwards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainyard.catalog.find import SWEEP, directories
from trainyard.catalog.stored_run import StoredRun
from trainyard.config.saved import saved_values
from trainyard.errors import TrainyardError
from trainyard.sweep.goals import Direction, Goals, as_number
from trainyard.sweep.identity import is_population
from trainyard.sweep.records import is_record
from trainyard.sweep.report.repeats import history
from trainyard.sweep.report.rows import JobRow
from trainyard.sweep.steering import is_run, no_sweep
from trainyard.track.run_info import RunInfo

ORDER = ("done", "running", "waiting", "paused", "pruned", "failed", "timeout", "lost", "interrupted", "stopped")
"""States of jobs, in the order in which they are counted."""


@dataclass
class SweepJob:
    """A job, according to the manifest.

    Attributes:
        num: its number.
        overrides: its overrides.
        subdir: its directory below the sweep's.
        state: one of `ORDER`.
        value: the result of a finished job: its best objective, or several numbers by name.
        seconds: how long it took.
        width: the number of jobs that trained with it in one program.
        error: why it failed.
        began: the time at which the last attempt started, in Unix seconds.
    """

    num: int
    overrides: list[str]
    subdir: str
    state: str = "waiting"
    value: Any = None
    seconds: float | None = None
    width: int = 1
    error: str | None = None
    began: float | None = None

    @property
    def objective(self) -> float | None:
        """The best objective; None if the job has no objective or returned several numbers."""
        return as_number(self.value)


@dataclass
class StoredSweep:
    """A sweep in a directory. Its manifest is only read, so the sweep may be running.

    Args:
        directory: the sweep's directory.

    Attributes:
        jobs: the jobs by number, as of the last `read_on`.
        started: the time of the first start, in Unix seconds.
        searched: whether a search chooses the jobs.
        population: whether the jobs are the members of a population.
        goals: the goals by which the search compares the jobs, if these are more than the objective.
    """

    directory: Path
    jobs: dict[int, SweepJob] = field(default_factory=dict)
    started: float | None = None
    searched: bool = False
    population: bool = False
    goals: Goals | None = None
    _read_to: int = 0
    _told: tuple[str | None, Direction] | None = None

    @classmethod
    def read(cls, directory: Path) -> StoredSweep:
        """Read the manifest in a directory.

        Raises:
            ConfigError: the directory has no manifest.
        """
        if not (directory / SWEEP).is_file():
            raise no_sweep(directory)
        sweep = cls(directory)
        sweep.read_on()
        return sweep

    def read_on(self) -> list[SweepJob]:
        """Read the new records, and return the jobs whose state has changed, each once.

        An incomplete last line is left for the next time.
        """
        with (self.directory / SWEEP).open("rb") as file:
            file.seek(self._read_to)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read_to += len(whole)
        changed: dict[int, SweepJob] = {}
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                changed |= {job.num: job for job in self._take(record)} if is_record(record) else {}
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line of something else, left by a crash of the machine
        return list(changed.values())

    @property
    def running(self) -> bool:
        """Whether a process runs the sweep and therefore holds the lock of the manifest."""
        return is_run(self.directory)

    @property
    def _objective(self) -> tuple[str | None, Direction]:
        if self.goals is not None:
            return self.goals.names[0], self.goals.directions[0]
        if self._told is None:  # of a sweep that has just begun, no job may have written its config yet
            run = next((found for job in self.jobs.values() if (found := self.run_of(job)).config), None)
            if run is None:
                return None, "minimize"
            direction: Direction = "maximize" if run.config.get("direction") == "maximize" else "minimize"
            self._told = run.objective, direction
        return self._told

    @property
    def objective(self) -> str | None:
        """The name of the number that ranks the jobs, from the first job; None if it is unknown."""
        return self._objective[0]

    @property
    def direction(self) -> Direction:
        return self._objective[1]

    @property
    def has_seed(self) -> bool:
        """Whether the config of the jobs has a seed; true if the config of the sweep cannot be read."""
        try:
            return saved_values(self.directory / "multirun.yaml").get("seed") is not None
        except TrainyardError:
            return True

    def run_of(self, job: SweepJob) -> StoredRun:
        """Return the run of a job; empty if the job has no record."""
        return StoredRun(self.directory / job.subdir, RunInfo(name=f"#{job.num}"))

    def rows(self) -> list[JobRow]:
        """Return the jobs for a ranking, each with the overrides that vary."""
        given = {num: _pairs(job.overrides) for num, job in self.jobs.items()}
        names = dict.fromkeys(name for pairs in given.values() for name in pairs)
        keys = [name for name in names if len({pairs.get(name) for pairs in given.values()}) > 1] or list(names)
        return [
            JobRow(
                num=num,
                overrides={key: given[num][key] for key in keys if key in given[num]},
                state=job.state,
                objective=None,
                seconds=None if job.seconds is None else job.seconds / job.width,
                directory=self.directory / job.subdir,
                error=job.error,
                history=history(num, job.overrides, in_population=self.population),
            ).graded(job.value, self.goals)
            for num, job in sorted(self.jobs.items())
        ]

    def counts(self) -> str:
        """Return the number of jobs in each state: `3 done, 1 running`."""
        counted = Counter(job.state for job in self.jobs.values())
        states = [*ORDER, *(state for state in counted if state not in ORDER)]
        return ", ".join(f"{counted[state]} {state}" for state in states if counted[state])

    def _take(self, record: dict[str, Any]) -> list[SweepJob]:
        kind = record["kind"]
        if kind == "proposer":
            self.searched, self.goals = "sampler" in record["identity"], Goals.of(record["identity"])
            self.population = is_population(record["identity"])
        if kind == "began":
            self.started = record["time"] if self.started is None else self.started
            running = [job for job in self.jobs.values() if job.state == "running"]
            for job in running:  # nothing of before runs any more
                job.state = "waiting"
            return running
        if kind == "job":
            num = record["num"]
            subdir = record.get("subdir")
            self.jobs[num] = SweepJob(num, list(record["overrides"]), str(num) if subdir is None else str(subdir))
            return []
        if kind == "inherited":
            self.jobs[record["num"]].overrides = list(record["overrides"])
            return []
        if kind == "queued":
            jobs = [self.jobs[num] for unit in record["units"] for num in _nums(unit)]
            for job in jobs:
                job.state = "waiting"
            return []
        if kind == "state":
            job = self.jobs[record["num"]]
            job.state, job.error = record["state"], record.get("error")
            job.value = record.get("objective", job.value)  # a job that goes on has the one so far
            if "seconds" in record:
                job.seconds, job.width = record["seconds"], record.get("width", 1)
            job.began = record.get("time") if job.state == "running" else job.began
            return [job]
        return []


def find_sweeps(folders: Sequence[Path]) -> list[StoredSweep]:
    """Return the sweeps in these folders and below, in the order in which they were started."""
    found = {}
    for folder in folders:
        for directory in directories(folder, SWEEP):
            found[directory.resolve()] = StoredSweep.read(directory)
    return sorted(found.values(), key=lambda sweep: (sweep.started or 0.0, str(sweep.directory)))


def _pairs(overrides: Sequence[str]) -> dict[str, str]:
    parts = (line.partition("=") for line in overrides)
    return {key.lstrip("+"): value for key, _, value in parts}


def _nums(unit: Any) -> Iterator[int]:
    yield from unit if isinstance(unit, list) else unit["nums"]
