"""Configs of a sweep's jobs: composed, checked and dropped one after the other; composed again when a job starts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainyard.config.current_job import current_job
from trainyard.config.plain import plain
from trainyard.config.resolving import resolve
from trainyard.errors import TrainyardError
from trainyard.sweep.compose.composer import Composer
from trainyard.sweep.compose.recipe import Recipe, Shared
from trainyard.sweep.directories import check_name, job_directory
from trainyard.sweep.events import Origin
from trainyard.sweep.plan import Job, process_of
from trainyard.sweep.sweep_wide import check_sweep_wide
from trainyard.sweep.sweepable import Sweepable

NUMBER = "${hydra.job.num}"  # the default of hydra.sweep.subdir


@dataclass(frozen=True)
class JobPlace:
    """Number and directory of a job in its config."""

    number: int
    directory: Path
    subdir: str | None

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls(job.number, job.directory, job.subdir)

    def write(self, config: DictConfig) -> bool:
        """Write them into the config of the job; return whether its `hydra.sweep.subdir` had to be replaced."""
        _set_place(config, self.number, self.directory)
        if self.subdir is None:
            return False
        with current_job(config):
            differs = str(config.hydra.sweep.subdir) != self.subdir
            if differs:
                config.hydra.sweep.subdir = self.subdir
        return differs


@dataclass(frozen=True)
class JobRecipe:
    """Recipe from which another process creates the config of a job."""

    recipe: Recipe
    place: JobPlace

    def make(self, shared: Shared) -> DictConfig:
        config = self.recipe.make(shared)
        self.place.write(config)
        return config


class JobConfigs:
    """Creates the jobs of a sweep from their overrides.

    Only the data that the plan needs is kept. Parts of configs that are equal in several jobs are kept once.

    Args:
        composer: composes configs.
        application: checks them.
        sweep: the config of the entire sweep.
        directory: the sweep's directory.
        capacity: the number of slots that a job can take.
        limit: a sentence with the reason for this limit; empty if there are no more slots.
        here: whether jobs run on this machine.
    """

    def __init__(
        self,
        composer: Composer,
        application: Sweepable,
        sweep: DictConfig,
        directory: Path,
        capacity: int,
        limit: str,
        here: bool = True,
    ) -> None:
        self._composer = composer
        self._application = application
        self._sweep = sweep
        self._directory = directory
        self._capacity = capacity
        self._limit = limit
        self._here = here
        self._parts: dict[tuple[str, str], Any] = {}

    def checked(
        self,
        overrides: Sequence[Sequence[str]],
        numbers: Iterable[int],
        subdirs: Mapping[int, str | None],
        origins: Mapping[int, Origin] = MappingProxyType({}),
    ) -> Iterator[tuple[Job, Exception | None]]:
        """Yield each job, composed and checked, with the error in its config; None if it is valid.

        Args:
            overrides: the overrides of each job.
            numbers: their numbers.
            subdirs: the recorded directories of jobs, which they keep.
            origins: the origins of clones.
        """
        composed = self._composer.attempt_each(overrides)
        for num, own, config in zip(numbers, overrides, composed, strict=True):
            unchecked = Job(num, tuple(own), self._sweep, self._directory)
            if isinstance(config, Exception):
                yield unchecked, config
                continue
            try:
                check_sweep_wide(config, self._sweep)
                yield self._checked(num, own, config, subdirs.get(num), origins.get(num)), None
            except (TrainyardError, OmegaConfBaseException) as error:
                yield unchecked, error

    def compose(self, job: Job) -> DictConfig:
        """Compose the config of a job again: the one that was checked."""
        config = self._composer.compose(job.overrides)
        if job.cache is not None:
            OmegaConf.set_cache(config, job.cache)
        JobPlace.of(job).write(config)
        return config

    def plain(self, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
        """Yield what `trainyard.config.plain.plain` returns for the config of each job, without a copy for each."""
        for job, config in zip(jobs, self._composer.attempt_each([job.overrides for job in jobs]), strict=True):
            if isinstance(config, Exception):
                yield plain(self.compose(job))  # raises the error that Hydra would raise
                continue
            if job.cache is not None:
                OmegaConf.set_cache(config, job.cache)
            place = JobPlace.of(job)
            # A directory that was written would stay in the configs of later jobs.
            yield plain(self.compose(job) if place.write(config) else config)

    def recipe(self, job: Job) -> tuple[JobRecipe, Shared] | None:
        """Return a recipe that composes the config of a job in another process; None if it must be composed here."""
        found = self._composer.recipe(job.overrides)
        if found is None:
            return None
        recipe, shared = found
        if job.cache is not None:
            recipe = replace(recipe, cache=job.cache)
        return JobRecipe(recipe, JobPlace.of(job)), shared

    def _checked(
        self, num: int, overrides: Sequence[str], config: DictConfig, recorded: str | None, origin: Origin | None
    ) -> Job:
        """Return a job with a valid config.

        Raises:
            TrainyardError, OmegaConfBaseException: its config is invalid.
        """
        number = num if origin is None else origin.number
        _set_place(config, number)
        with current_job(config):
            sweep = config.hydra.sweep
            subdir = str(number) if plain(sweep._get_node("subdir")) == NUMBER else str(sweep.subdir)
            if recorded is not None and recorded != subdir:  # it depends on the time, say
                config = self._composer.compose(overrides)  # one of its own, since another job would get the place
                _set_place(config, number)
                config.hydra.sweep.subdir = subdir = recorded
        with current_job(config):
            directory = job_directory(config, self._directory, subdir)
            check_name(config, directory)
            config.hydra.runtime.output_dir = str(directory)
            values = self._application.check(config)
            slots, work_dir = self._slots(values), self._work_dir(values)
            if values is None and self._application.fuse is not None:
                values = resolve(config)
            process = process_of(config)
        cache = OmegaConf.get_cache(config)
        return Job(
            num,
            tuple(overrides),
            self,
            directory,
            None if values is None else {key: self._part(key, value) for key, value in values.items()},
            slots,
            work_dir,
            subdir,
            {key: self._part(f"hydra {key}", value) for key, value in process.items()},
            origin,
            None if cache == OmegaConf.get_cache(self._sweep) else deepcopy(cache),
        )

    def _part(self, key: str, value: Any) -> Any:
        """Return a part of a config, or an equal part that is already kept."""
        return self._parts.setdefault((key, repr(value)), value)

    def _slots(self, values: dict[str, Any] | None) -> int:
        """Return the number of slots that a job takes.

        Raises:
            TrainyardError: the job needs more slots than there are.
        """
        # The devices of this machine say nothing about those of others.
        count = self._application.slots(values, self._capacity if self._here else sys.maxsize)
        if count > self._capacity:
            told = f"A job needs {count} slots, one for each device, but at most {self._capacity} can be used."
            raise TrainyardError(f"{told} {self._limit}".rstrip())
        return count

    def _work_dir(self, values: dict[str, Any] | None) -> str | None:
        """Return the directory that a training's config names; the config of another application need not name one."""
        own = (values or {}).get("work_dir") if self._application.resumes else None
        return None if own is None else str(own)


def _set_place(config: DictConfig, num: int, directory: Path | None = None) -> None:
    config.hydra.job.id = str(num)
    config.hydra.job.num = num
    if directory is not None:
        config.hydra.runtime.output_dir = str(directory)
