"""Tracking of a sweep in MLflow: a run for the sweep, the runs of its jobs below it, one shipper for all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trainyard.config.build import build, is_node
from trainyard.sweep.plan import Job, SweepPlan
from trainyard.track import Journal, RunInfo, Shipment, Status, Tracker
from trainyard.track.journal import FILE as JOURNAL
from trainyard.track.run_info import FILE

PLAN = "plan.txt"


class SweepTracking:
    """Ships the journals of all jobs of a sweep, if its config has a tracker.

    Args:
        directory: the sweep's directory.
        config: the config of one job, since all share a tracker; None for the jobs of another application.
        plan: the plan of the first jobs.

    Attributes:
        parent: the id of the sweep's own run; None if nothing is tracked.
    """

    def __init__(self, directory: Path, config: DictConfig | None, plan: SweepPlan) -> None:
        self.directory = directory
        self.parent: str | None = None
        self._expected: dict[int, Path] = {}
        self._began = 0.0
        self._tracker: Tracker | None = None
        node = None if config is None else OmegaConf.select(config, "tracker")
        if not is_node(node):
            return
        self._tracker = build(node, "tracker")
        assert self._tracker is not None
        self._tracker.start()
        self._journal = Journal(directory)
        info = RunInfo(
            name=os.environ.get("MLFLOW_RUN_NAME") or f"sweep {directory.parent.name} {directory.name}",
            params={"varying": ", ".join(plan.keys)},
            tags={"kind": "sweep"},
        )
        self.parent = self._tracker.open(directory, info, resume=True).id
        self._journal.status("RUNNING")

    def write_plan(self, plan: SweepPlan) -> None:
        """Write the plan of all jobs so far."""
        if self._tracker is not None:
            (self.directory / PLAN).write_text(f"{plan.text()}\n")

    def count(self, jobs: int) -> None:
        """Note the number of jobs so far."""
        if self._tracker is not None:
            self._journal.tags({"jobs": jobs})  # a param could not grow

    def expect(self, jobs: Iterable[Job]) -> None:
        """Add jobs that are about to run: each is followed once it has written its `run.json`."""
        self._began = self._began or time.time()
        self._expected.update({job.num: job.directory for job in jobs})

    def look(self) -> None:
        """Follow the jobs that have begun since the last look."""
        if self._tracker is not None:
            for num, directory in list(self._expected.items()):
                path = directory / FILE
                if path.exists() and path.stat().st_mtime >= self._began:
                    self._tracker.follow(directory)
                    del self._expected[num]

    def ended(self, job: Job) -> None:
        """Stop following a job that has ended, whose directory has no writer any more."""
        if self._tracker is not None:
            self.look()
            self._expected.pop(job.num, None)
            self._tracker.close(job.directory)

    def paused(self, job: Job) -> None:
        """Follow a job on that is paused: its run goes on, whatever the job said when it was asked to end."""
        if self._tracker is not None:
            self.look()
            _note(job.directory, "RUNNING")

    def pruned(self, job: Job, at: int) -> None:
        """Mark the run of a job that will not go on: it has not failed.

        Args:
            job: the job.
            at: the place at which it has reported last.
        """
        if self._tracker is not None:
            self.look()
            _note(job.directory, "FINISHED", "pruned", {"pruned": True, "rung": at})
            self.ended(job)

    def abort(self) -> Shipment:
        """End shipping at once, and report what is left."""
        if self._tracker is None:
            return Shipment()
        self._journal.close()
        return self._tracker.abort()

    def finish(self, files: Sequence[Path], status: Status, *, paused: Iterable[Path] = ()) -> Shipment:
        """Name the files that belong to the sweep's own run, end that run with a status, and wait for the shipper.

        Args:
            files: the files.
            status: the status.
            paused: the directories of jobs that stay paused: their runs are neither failed nor killed.
        """
        if self._tracker is None:
            return Shipment()
        for directory in paused:
            _note(directory, "FINISHED", "paused")
        for file in (self.directory / PLAN, *files):
            self._journal.artifact(file)
        self._journal.status(status)
        self._journal.close()
        return self._tracker.finish()


def _note(directory: Path, status: Status, message: str = "", tags: Mapping[str, Any] | None = None) -> None:
    """Write a status, and tags, into the journal of a job that has no process."""
    if (directory / JOURNAL).exists():
        with Journal(directory) as journal:
            if tags:
                journal.tags(tags)
            journal.status(status, message)
