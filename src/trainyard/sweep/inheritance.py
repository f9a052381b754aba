"""Inheritance: a paused job continues from the checkpoint of another job, with some values changed.

The checkpoint of the other job lies in the heir's directory before this is recorded, under a second name of the same
file; the heir's own checkpoints are moved away after that. Both can be repeated, so that a kill at any moment leaves
either the job as it was, or the heir.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from trainyard.errors import TrainyardError
from trainyard.files import remove
from trainyard.sweep.clones import newest_linked, writes_to
from trainyard.sweep.events import Inherited
from trainyard.sweep.job_configs import JobConfigs
from trainyard.sweep.plan import Job
from trainyard.sweep.sweepable import Sweepable

FOLDER = "inherited"
"""Folder of an heir's directory, with a folder for each place at which it has inherited."""
OWN = "own"
CONFIGS = "lineage"
"""Folder of an heir's directory with the configs of before: those with which it trained until it inherited."""


def config_until(directory: Path, at: int) -> Path:
    """Return the file of the config with which a job trained until it continued from another job at this place."""
    return directory / CONFIGS / f"until_{at}.yaml"


class Inheritance:
    """Makes heirs.

    Args:
        application: the jobs' application.
        configs: makes their configs.
    """

    def __init__(self, application: Sweepable, configs: JobConfigs) -> None:
        self._application = application
        self._configs = configs

    def make(self, job: Job, source: Job, at: int, overrides: Sequence[str]) -> tuple[Job, Inherited]:
        """Return the heir, whose checkpoint is in its directory by now, and the event to log.

        Args:
            job: the paused job.
            source: the job as which it goes on.
            at: the place at which both have paused.
            overrides: those that it has from here on.

        Raises:
            TrainyardError: a value cannot be changed in the course of a training, or there is no checkpoint.
        """
        ((heir, error),) = self._configs.checked([overrides], [job.num], {job.num: job.subdir})
        if error is not None:
            raise TrainyardError(str(error)) from error
        keys = self._application.changed(source.values, heir.values, ended=False)
        name = newest_linked(source, job.directory / FOLDER / str(at))
        return heir, Inherited(job.num, source.num, at, tuple(overrides), tuple(keys), name)


def begin(job: Job, inherited: Inherited) -> bool | str:
    """Return what an heir resumes: its own newest checkpoint (true), or the one that it has inherited.

    Its checkpoints of before are removed the first time.
    """
    place = job.directory / FOLDER / str(inherited.at)
    checkpoints = writes_to(job) / "checkpoints"
    if not (place / OWN).exists():
        _keep_config(writes_to(job), inherited.at)
        if checkpoints.exists():
            checkpoints.rename(place / OWN)
        (place / OWN).mkdir(parents=True, exist_ok=True)
        for other in (job.directory / FOLDER).iterdir():
            if other != place:
                shutil.rmtree(other, ignore_errors=True)
    for file in (place / OWN).iterdir():
        remove(file)
    return True if (checkpoints / "last.json").exists() else str(place / inherited.checkpoint)


def _keep_config(directory: Path, at: int) -> None:
    """Keep the config of a job, which is to have another one; done again, this changes nothing."""
    kept = config_until(directory, at)
    if (directory / "config.yaml").is_file() and not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(directory / "config.yaml", kept)


def settings_of(job: Job, inherited: Inherited) -> dict[str, object]:
    """Return the settings that the config of an heir has when it starts."""
    return {"resume": begin(job, inherited), "resume_override": list(inherited.keys)}
