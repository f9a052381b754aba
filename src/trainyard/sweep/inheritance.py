"""Inheritance: a paused job continues from the checkpoint of another job, with some values changed.

Before this is recorded, the checkpoint of the other job is linked into the heir's directory; afterwards, the heir's own
checkpoints are moved away. Both operations can be repeated, so that a kill at any moment leaves either the unchanged
job or the heir.
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
"""Folder in an heir's directory, with a subfolder for each position at which it has inherited."""
OWN = "own"
CONFIGS = "lineage"
"""Folder in an heir's directory with its earlier configs, with which it trained until it inherited."""


def config_until(directory: Path, at: int) -> Path:
    """Return the file of the config with which a job trained until it continued from another job at this place."""
    return directory / CONFIGS / f"until_{at}.yaml"


class Inheritance:
    """Creates heirs.

    Args:
        application: the jobs' application.
        configs: makes their configs.
    """

    def __init__(self, application: Sweepable, configs: JobConfigs) -> None:
        self._application = application
        self._configs = configs

    def make(self, job: Job, source: Job, at: int, overrides: Sequence[str]) -> tuple[Job, Inherited]:
        """Return the heir, whose checkpoint is already in its directory, and the event to log.

        Args:
            job: the paused job.
            source: the job from which it continues.
            at: the position at which both have paused.
            overrides: its overrides from here on.

        Raises:
            TrainyardError: a value cannot be changed during a training, or there is no checkpoint.
        """
        ((heir, error),) = self._configs.checked([overrides], [job.num], {job.num: job.subdir})
        if error is not None:
            raise TrainyardError(str(error)) from error
        keys = self._application.changed(source.values, heir.values, ended=False)
        name = newest_linked(source, job.directory / FOLDER / str(at))
        return heir, Inherited(job.num, source.num, at, tuple(overrides), tuple(keys), name)


def begin(job: Job, inherited: Inherited) -> bool | str:
    """Return the checkpoint that an heir resumes: its own newest one (true), or the inherited one.

    Its earlier checkpoints are removed the first time.
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
    """Keep the config of a job that will have another one; repeated calls have no effect."""
    kept = config_until(directory, at)
    if (directory / "config.yaml").is_file() and not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(directory / "config.yaml", kept)


def settings_of(job: Job, inherited: Inherited) -> dict[str, object]:
    """Return the settings that the config of an heir has when it starts."""
    return {"resume": begin(job, inherited), "resume_override": list(inherited.keys)}
