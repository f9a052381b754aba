"""Clones: jobs that start from the newest checkpoint of another job, with other values.

A clone is a job of the sweep: it has a number, a directory, a line in the plan and the ranking. Its number is from a
separate series, so that no later job of a proposer or of a Hydra batch can have it, and the same command resumes it
when the sweep is continued. It does not belong to a proposer, and the proposer does not receive its events.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from trainyard.errors import ConfigError, TrainyardError
from trainyard.files import remove
from trainyard.sweep.directories import Places
from trainyard.sweep.events import FIRST_CLONE, Event, Origin, Proposed, Queued
from trainyard.sweep.job_configs import JobConfigs
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job
from trainyard.sweep.proposers.base import NewJob, Proposer
from trainyard.sweep.scheduler import Scheduler
from trainyard.sweep.sweepable import Sweepable

START = "start"
"""Folder in a clone's directory for the checkpoint from which it starts."""
_TRIES = 20  # a running job may remove an old checkpoint at the moment at which it is looked at


def of_proposer(event: Event) -> Event | None:
    """Return an event as a proposer receives it: without clones; None if it concerns only clones."""
    if isinstance(event, Queued):
        units = tuple(unit for unit in event.units if unit.nums[0] < FIRST_CLONE)
        return replace(event, units=units) if units else None
    return None if getattr(event, "num", 0) >= FIRST_CLONE else event


def tell(proposer: Proposer, event: Event) -> None:
    """Notify a proposer of an event, if it concerns jobs of the proposer."""
    own = of_proposer(event)
    if own is not None:
        proposer.told(own)


def recorded_jobs(manifest: Manifest, scheduler: Scheduler, *, clones_alone: bool) -> list[NewJob]:
    """Return the recorded jobs: those that have neither ended nor paused will run, and all are ranked."""
    return [
        NewJob(tuple(entry.overrides), num, scheduler.rungs.get(num))
        for num, entry in manifest.entries.items()
        if entry.origin is not None or not clones_alone
    ]


class Clones:
    """Makes clones of jobs.

    Args:
        application: the jobs' application.
        configs: composes their configs.
        manifest: the manifest of the sweep.
        directory: the sweep's directory.
        places: the directories of all jobs.
    """

    def __init__(
        self, application: Sweepable, configs: JobConfigs, manifest: Manifest, directory: Path, places: Places
    ) -> None:
        self._application = application
        self._configs = configs
        self._manifest = manifest
        self._directory = directory
        self._places = places

    def make(self, source: Job, changes: Sequence[str]) -> tuple[Job, Proposed]:
        """Return a clone, whose checkpoint is already in its directory, and the event to log.

        The checkpoint is a hard link, because the source may remove its own. A clone that was not logged has no effect:
        the next one with this number replaces it.

        Args:
            source: the job to clone.
            changes: the overrides that are different.

        Raises:
            TrainyardError: a value cannot be changed, or the job has no checkpoint.
        """
        num = self._manifest.next_clone
        overrides = (*source.overrides, *changes)
        origin = Origin(source.num, source.number)
        ((job, error),) = self._configs.checked([overrides], [num], {num: str(num)}, {num: origin})
        if error is not None:
            raise TrainyardError(str(error)) from error
        ended = self._manifest.entries[source.num].state == "done"
        keys = self._application.changed(source.values, job.values, ended=ended)
        self._check_place(job)
        name = newest_linked(source, job.directory / START)
        origin = replace(origin, keys=tuple(keys), checkpoint=name)
        return replace(job, origin=origin), Proposed(num, overrides, subdir=job.subdir, origin=origin)

    def _check_place(self, job: Job) -> None:
        """Check that a clone writes to a directory of its own.

        Raises:
            ConfigError: another job writes to the directory that the config names.
        """
        if job.work_dir is not None and (owner := self._places.owner(job)) is not None:
            accepted = "a separate directory for each job, including clones"
            hint = f"#{owner.num} writes to this directory. Set another work_dir=… for the clone."
            raise ConfigError("work_dir", job.work_dir, accepted, hint=hint)


def newest_linked(source: Job, folder: Path) -> str:
    """Put the newest checkpoint of a job into a folder, and return its name.

    Raises:
        TrainyardError: there is no checkpoint.
    """
    remove(folder)
    for _ in range(_TRIES):
        if (newest := newest_checkpoint(source)) is not None:
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                _link(newest, folder / newest.name)
                return newest.name
    remove(folder)
    with suppress(OSError):
        folder.parent.rmdir()
    raise TrainyardError(f"#{source.num} has no checkpoint to start from")


def newest_checkpoint(job: Job) -> Path | None:
    """Return the newest checkpoint from which a job can continue; None if there is none."""
    folder = writes_to(job) / "checkpoints"
    with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        return folder / str(json.loads((folder / "last.json").read_text())["history"][-1])
    return None


def start_of(job: Job) -> bool | str:
    """Return the checkpoint that a clone resumes: its own newest one (true), or that of its source."""
    assert job.origin is not None
    if (writes_to(job) / "checkpoints" / "last.json").exists():
        return True
    return str(job.directory / START / job.origin.checkpoint)


def writes_to(job: Job) -> Path:
    """Return the directory that a training writes to."""
    return job.directory if job.work_dir is None else Path(job.work_dir).absolute()


def _link(source: Path, target: Path) -> None:
    """Create a hard link to a file, or to the files of a folder; copy them if the file system does not support
    links."""
    if source.is_dir():  # a checkpoint in shards
        target.mkdir()
        for file in sorted(source.iterdir()):
            _link(file, target / file.name)
        return
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
