"""Tracking of a sweep in MLflow: a run for the sweep, the runs of its jobs below it, and one shipper for all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trainyard.config.build import build, is_node
from trainyard.errors import counted
from trainyard.sweep.events import Inherited
from trainyard.sweep.goals import Direction, Goals
from trainyard.sweep.plan import Job, SweepPlan
from trainyard.sweep.report.ranking import rank, table, text
from trainyard.sweep.report.repeats import Configuration, configurations
from trainyard.sweep.report.rows import JobRow
from trainyard.sweep.summary import BestSoFar, command, data_sets, summary_tags
from trainyard.track import Journal, RunInfo, Shipment, Status, Tracker, as_tracker, facts
from trainyard.track.journal import FILE as JOURNAL
from trainyard.track.run_info import FILE
from trainyard.track.uri import DEFAULT_EXPERIMENT

PLAN = "plan.txt"
RANKING = "ranking.txt"
LISTED = 1000
"""Number of jobs in the ranking in the sweep's run, best first; `results.csv` contains all jobs."""
MULTIRUN = "multirun.yaml"  # the command; Hydra's basic sweeper writes it too
CONFIGURATIONS = ".configurations"
"""Folder of a sweep with a run for each configuration that was repeated. It is hidden, because these runs train
nothing."""


def started_tracker(config: DictConfig | None) -> Tracker | None:
    """Return the tracker of a sweep, started: its process loads MLflow from now on. None if nothing is tracked.

    Args:
        config: the config of one job, because all jobs share a tracker; None for the jobs of another application.
    """
    node = None if config is None else OmegaConf.select(config, "tracker")
    if config is None or not is_node(node) or OmegaConf.select(config, "quick"):
        return None
    tracker = as_tracker(build(node, "tracker"))
    tracker.start()
    return tracker


class SweepTracking:
    """Ships the journals of all jobs of a sweep, if its config has a tracker.

    Args:
        directory: the directory of the sweep.
        config: the config of one job, because all jobs share a tracker; None for the jobs of another application.
        plan: the plan of the first jobs.
        goals: the metrics by which jobs are compared, if they are more than the objective.
        tracker: the tracker, if it is started already (`started_tracker`).

    Attributes:
        parent: the ID of the run of the sweep; None if nothing is tracked.
        experiment: the MLflow experiment of the sweep, if it has a separate one.
    """

    def __init__(
        self,
        directory: Path,
        config: DictConfig | None,
        plan: SweepPlan,
        goals: Goals | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        self.directory = directory
        self._goals = goals
        self.parent: str | None = None
        self.experiment: str | None = None
        self._expected: dict[int, Path] = {}
        self._began = 0.0
        self._tracker = tracker or started_tracker(config)
        if config is None or self._tracker is None:
            return
        collected = facts.begin(Path.cwd())
        self._journal = Journal(directory)
        title = f"{directory.parent.name} {directory.name}"
        experiment = getattr(self._tracker, "experiment", None) or DEFAULT_EXPERIMENT  # None: selected by its ID
        info = RunInfo(
            name=os.environ.get("MLFLOW_RUN_NAME") or f"sweep {title}",
            params={"varying": ", ".join(plan.keys)},
            tags={"kind": "sweep", "command": command()},
            facts=collected(),
            experiment=f"{experiment}/{title}" if self._tracker.experiment_per_sweep else None,
        )
        opened = self._tracker.open(directory, info, resume=True)
        self.parent = opened.id
        self.experiment = opened.experiment if self._tracker.experiment_per_sweep else None
        self._objective = OmegaConf.select(config, "objective")
        self._best = BestSoFar(OmegaConf.select(config, "direction") or "minimize")
        for job in plan.jobs:  # a sweep that goes on
            entry = plan.entries[job.num]
            if not entry.is_left:
                self._best.add(self._known(entry.objective))
        self._journal.status("RUNNING")

    def write_plan(self, plan: SweepPlan) -> None:
        """Write the plan of all jobs so far."""
        if self._tracker is not None:
            (self.directory / PLAN).write_text(f"{plan.text()}\n")

    def count(self, jobs: int) -> None:
        """Record the number of jobs so far."""
        if self._tracker is not None:
            self._journal.tags({"jobs": jobs})  # a param could not grow

    def expect(self, jobs: Iterable[Job]) -> None:
        """Add jobs that are about to run. Each is followed once it has written its `run.json`."""
        self._began = self._began or time.time()
        self._expected.update({job.num: job.directory for job in jobs})

    def look(self) -> None:
        """Follow the jobs that have started since the last call."""
        for num in list(self._expected):
            self._look_for(num)

    def _look_for(self, num: int) -> None:
        """Follow a job if it has started since the last call."""
        if self._tracker is not None and (directory := self._expected.get(num)) is not None:
            path = directory / FILE
            if path.exists() and path.stat().st_mtime >= self._began:
                self._tracker.follow(directory)
                del self._expected[num]

    def ended(self, job: Job, value: Any = None) -> None:
        """Stop following a job that has ended, so that no process writes to its directory any more.

        Args:
            job: the job.
            value: the objective of the job, if it is done. The best value so far is recorded at the number of finished
                jobs.
        """
        if self._tracker is None:
            return
        self._look_for(job.num)
        self._expected.pop(job.num, None)
        self._tracker.close(job.directory)
        if self._best.add(self._known(value)) and self._best.value is not None and self._objective:
            self._journal.metrics(self._best.count, {f"best/{self._objective}": self._best.value})

    def _known(self, value: Any) -> Any:
        """Return the objective from the result of a job; None if it has several, or violates constraints."""
        return value if self._goals is None else self._goals.best(value)

    def paused(self, job: Job) -> None:
        """Continue to follow a job that is paused: its run continues, regardless of the status that the job
        recorded."""
        if self._tracker is not None:
            self._look_for(job.num)
            _note(job.directory, "RUNNING")

    def inherited(self, job: Job, lineage: Sequence[Inherited]) -> None:
        """Tag the run of a job that continues from another job with the number of the other job and the position."""
        if self._tracker is not None:
            self._look_for(job.num)
            told = ", ".join(f"#{each.source} at {each.at}" for each in lineage)
            _note(job.directory, "RUNNING", tags={"lineage": told, "varies": " ".join(job.overrides)})

    def pruned(self, job: Job, at: int) -> None:
        """Mark the run of a job that will not continue as pruned, not as failed.

        Args:
            job: the job.
            at: the position of its last report.
        """
        self._end(job, "FINISHED", "pruned", {"pruned": True, "rung": at})

    def stopped(self, job: Job) -> None:
        """Mark the run of a job that was stopped while it was paused, or waited, as killed."""
        self._end(job, "KILLED", "stopped")

    def _end(self, job: Job, status: Status, message: str, tags: Mapping[str, Any] | None = None) -> None:
        """Record the last status of a job that has no process, even if an earlier process of the sweep ran it."""
        if self._tracker is not None:
            if (job.directory / FILE).exists():
                self._tracker.follow(job.directory)
            _note(job.directory, status, message, tags)
            self.ended(job)

    def abort(self) -> Shipment:
        """End shipping immediately, and report what is not shipped."""
        if self._tracker is None:
            return Shipment()
        self._journal.close()
        return self._tracker.abort()

    def summarize(self, plan: SweepPlan, rows: Sequence[JobRow], objective: str | None, direction: Direction) -> None:
        """Record the best job and the ranking in the run of the sweep, and write the runs of configurations.

        Args:
            plan: the plan of all jobs.
            rows: the jobs.
            objective: the name of the metric that ranks the jobs; None if there is none.
            direction: whether higher or lower values are better.
        """
        if self._tracker is None or self.parent is None:
            return
        order = rank(rows, direction)
        best = order[0] if order and order[0].ranked else None
        (self.directory / RANKING).write_text(text(table(rows, objective, direction, limit=LISTED)))
        self._journal.linked_tags(summary_tags(order, objective, direction, command(), str(self.directory)))
        if best is None:
            return
        jobs = [best] if not any(key.partition(".")[0] == "data" for key in plan.keys) else order
        if inputs := data_sets([row.directory for row in jobs]):
            self._journal.inputs(inputs)
        if self._tracker.register is not None:
            self._journal.register(*self._tracker.register, of=os.path.relpath(best.directory, self.directory))
        for each in configurations(rows, direction):
            if each.n:
                self._record_configuration(each, objective or "objective")

    def _record_configuration(self, found: Configuration, objective: str) -> None:
        """Write the run of a configuration, with the mean of its repeats. It is an MLflow run next to those of its
        jobs."""
        assert self._tracker is not None
        folder = self.directory / CONFIGURATIONS / str(found.rows[0].num)
        folder.mkdir(parents=True, exist_ok=True)
        name = " ".join(f"{key}={value}" for key, value in found.overrides.items()) or "all jobs"
        info = RunInfo(
            name=f"{name} ({counted(len(found.rows), 'repeat')})",
            params=dict(found.overrides),
            tags={"kind": "configuration", "jobs": ", ".join(f"#{row.num}" for row in found.rows)},
            parent=self.parent,
            experiment=self.experiment,
        )
        values = {f"mean/{objective}": found.mean, f"std/{objective}": found.std, "n": found.n}
        self._tracker.open(folder, info, resume=True)
        with Journal(folder) as journal:
            journal.status("RUNNING")
            journal.metrics(found.n, {key: value for key, value in values.items() if value is not None})
            journal.status("FINISHED")
        self._tracker.close(folder)

    def finish(self, files: Sequence[Path], status: Status, *, paused: Iterable[Path] = ()) -> Shipment:
        """Record the files of the sweep's run, end that run with a status, and wait for the shipper.

        Args:
            files: the files.
            status: the status.
            paused: the directories of jobs that remain paused, whose runs are neither failed nor killed.
        """
        if self._tracker is None:
            return Shipment()
        for directory in paused:
            _note(directory, "FINISHED", "paused")
        for file in (*(self.directory / name for name in (PLAN, MULTIRUN, RANKING)), *files):
            if file.exists():
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
