"""Directories of the jobs of a sweep: each job has its own directory inside that of the sweep."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from omegaconf import DictConfig, OmegaConf

from trainyard.config.plain import plain
from trainyard.errors import ConfigError, quoted
from trainyard.sweep.plan import Job

SUBDIR = "hydra.sweep.subdir"
LONGEST = 255
"""Maximum number of bytes in a file name on common file systems."""


def job_directory(config: DictConfig, sweep: Path, subdir: str | None = None) -> Path:
    """Return the directory of a job.

    Args:
        config: the config of the job, which is Hydra's current one.
        sweep: the sweep's directory.
        subdir: its resolved `hydra.sweep.subdir`, if known.

    Raises:
        ConfigError: the directory is not inside that of the sweep.
    """
    base = os.path.abspath(_own_sweep_directory(config) or sweep)  # noqa: PTH100 - called for each job, as is join
    own = str(config.hydra.sweep.subdir) if subdir is None else subdir
    directory = os.path.normpath(os.path.join(base, own))  # noqa: PTH118
    if not directory.startswith(base.rstrip(os.sep) + os.sep):
        template = _template(config)
        resolved = "" if own == template else f"The value resolves to {quoted(own)}. "
        hint = f"{resolved}hydra.sweep.dir names the directory of the sweep."
        raise ConfigError(SUBDIR, template, "a directory inside the sweep directory", hint=hint)
    return Path(directory)


def check_name(config: DictConfig, directory: Path) -> None:
    """Check that the directory of a job can have its name.

    Args:
        config: the job's config.
        directory: its directory.

    Raises:
        ConfigError: a part of its path is longer than file systems allow.
    """
    if len(os.fsencode(str(directory))) <= LONGEST:
        return
    for name in directory.parts:
        size = len(os.fsencode(name))
        if size > LONGEST:
            key = SUBDIR if name in Path(str(config.hydra.sweep.subdir)).parts else "hydra.sweep.dir"
            written = str(plain(config.hydra.sweep._get_node(key.rpartition(".")[2])))
            hint = f"{quoted(name[:40])}… has {size} bytes. Use a shorter name"
            hint += ", such as ${hydra:job.num}" if key == SUBDIR else ""
            if "override_dirname" in written:
                hint += ", or exclude overrides from the name (hydra.job.config.override_dirname.exclude_keys)"
            raise ConfigError(key, written, f"names of at most {LONGEST} bytes between slashes", hint=f"{hint}.")


class Places:
    """Directories that the jobs of a sweep write to, each with its job."""

    def __init__(self) -> None:
        self._owners: dict[str, Job] = {}

    def copy(self) -> Self:
        """Return a copy, which keeps the jobs that it gets to itself."""
        found = type(self)()
        found._owners = dict(self._owners)
        return found

    def owner(self, job: Job) -> Job | None:
        """Return the job that writes to a directory of a new job, which is not added; None if there is none."""
        return next((self._owners[place] for place in _places(job).values() if place in self._owners), None)

    def take(self, jobs: Iterable[Job]) -> list[tuple[Job, ConfigError]]:
        """Add jobs, and return those that would write to the directory of another job, each with the error to report.

        Args:
            jobs: new jobs of the sweep; earlier ones are not checked again.
        """
        found = []
        error: ConfigError | None = None  # of the first two, which is reported once for all
        for job in jobs:
            for key, place in _places(job).items():
                owner = self._owners.setdefault(place, job)
                if owner is not job:
                    error = error or _error(owner, job, key, place)
                    found.append((job, error))
                    break
        return found


def _template(config: DictConfig) -> str:
    """Return `hydra.sweep.subdir` as it is written, with its interpolations."""
    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    return str(sweep["subdir"])


def _places(job: Job) -> dict[str, str]:
    """Return the directories that a job writes to, each by the key that names it."""
    places = {SUBDIR: str(job.directory)}
    if job.work_dir is not None:
        base = str(job.directory) if job.chdir else os.getcwd()  # noqa: PTH109 - called for each job, as is join
        places["work_dir"] = os.path.normpath(os.path.join(base, job.work_dir))  # noqa: PTH118
    return places


def _error(one: Job, other: Job, key: str, place: str) -> ConfigError:
    differing = [name for name, value in other.choices.items() if one.choices.get(name) != value]
    hidden: Any = OmegaConf.to_container(other.config.hydra.job.config.override_dirname.exclude_keys)
    jobs = " and ".join(
        " ".join([f"#{job.num}", *(f"{name}={job.choices[name]}" for name in differing if name in job.choices)])
        for job in (one, other)
    )
    values = [_interpolation(other, name) for name in differing if re.fullmatch(r"[\w.]+", name)]
    way = f"Add {' or '.join(['${hydra:job.num}', *values])} to {key}"
    template = _template(other.config) if key == SUBDIR else other.work_dir
    if "override_dirname" in str(template) and any(name in hidden for name in differing):
        names = ", ".join(name for name in differing if name in hidden)
        way += f", or remove {names} from hydra.job.config.override_dirname.exclude_keys"
    return ConfigError(
        key,
        template,
        "a separate directory for each job",
        hint=f"Both {jobs} would write to {place}. {way}.",
    )


def _interpolation(job: Job, name: str) -> str:
    choices: Any = job.config.hydra.runtime.choices
    return f"${{hydra:runtime.choices.{name}}}" if name in choices else f"${{{name}}}"


def _own_sweep_directory(config: DictConfig) -> str | None:
    """Return a job's own `hydra.sweep.dir`; None if it cannot differ from the sweep's."""
    text = str(plain(config.hydra.sweep._get_node("dir")))
    return str(config.hydra.sweep.dir) if "${" in text.replace("${now:", "") else None
