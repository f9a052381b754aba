"""Admission of jobs to a sweep: whether they may start, by their numbers, their configs, and a trial in a worker."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainyard.errors import TrainyardError
from trainyard.sweep.compose.composer import rare_collections
from trainyard.sweep.directories import Places
from trainyard.sweep.entry import Entry
from trainyard.sweep.events import FIRST_CLONE
from trainyard.sweep.executor.task import Task, TaskOutcome
from trainyard.sweep.job_configs import JobConfigs
from trainyard.sweep.job_errors import told
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job, SweepPlan
from trainyard.sweep.proposers import GridProposer, NewJob, Proposer
from trainyard.sweep.sweepable import Sweepable
from trainyard.sweep.trial import Trials
from trainyard.sweep.varying import varying
from trainyard.track.sweep_position import Rungs

WrongJob = tuple[Job, Exception]
"""A job that may not start, and the reason."""


@dataclass(frozen=True)
class CheckedJobs:
    """Jobs whose configs were composed and checked.

    Attributes:
        jobs: the new jobs, in the order of the proposals.
        later: listed jobs that are proposed later.
        wrong: the jobs among both that may not start.
        rungs: the rungs of the new jobs, by number.
    """

    jobs: list[Job]
    later: list[Job]
    wrong: list[WrongJob]
    rungs: Mapping[int, Rungs | None]

    @property
    def all(self) -> list[Job]:
        """All these jobs."""
        return [*self.jobs, *self.later]


class Admission:
    """Decides which jobs of a sweep may start. Nothing is recorded.

    Args:
        application: the jobs' application.
        configs: composes and checks the configs of jobs.
        manifest: the manifest of the sweep.
        trials: tries jobs in a worker.
        places: the directories of the sweep's jobs, to which those of admitted jobs are added.
        directory: the directory of the sweep.
        command: the overrides of the command line.

    Attributes:
        proposer: the proposer of the jobs.
        from_proposer: whether the recorded jobs determine the next decision of the proposer.
        begun: whether this command has admitted jobs before.
    """

    def __init__(
        self,
        application: Sweepable,
        configs: JobConfigs,
        manifest: Manifest,
        trials: Trials,
        places: Places,
        directory: Path,
        command: Sequence[str],
    ) -> None:
        self._application = application
        self._configs = configs
        self._manifest = manifest
        self._trials = trials
        self._places = places
        self._directory = directory
        self._command = command
        self.proposer: Proposer = GridProposer([])
        self.from_proposer = False
        self.begun = False

    def starts_over(self, nums: Iterable[int]) -> bool:
        """Return whether these jobs, which are done, run again."""
        at_start = not self.begun and not self._application.resumes and not self.from_proposer
        return at_start and self._manifest.is_done(nums)

    def checked(self, new: Sequence[NewJob], listed: Sequence[Sequence[str]]) -> CheckedJobs:
        """Compose and check jobs.

        Args:
            new: the jobs.
            listed: the overrides of jobs that are proposed later, and are checked now.

        Raises:
            TrainyardError: there are more jobs than a sweep can have.
        """
        numbers = self._numbers(new)
        with rare_collections():
            jobs, wrong = self._composed([each.overrides for each in new], numbers, self._places)
            later, wrong_later = self._later(listed, jobs)
            rungs = {num: each.rungs for num, each in zip(numbers, new, strict=True)}
            index_of = {tuple(own): index for index, own in enumerate(listed)}
            self._trials.rungs = rungs | {job.num: self.proposer.first_rungs(index_of[job.overrides]) for job in later}
        return CheckedJobs(jobs, later, [*wrong, *wrong_later], rungs)

    def refuse_wrong(self, checked: CheckedJobs, *, tried: bool) -> None:
        """Refuse jobs if the config of one is invalid.

        Args:
            checked: the jobs.
            tried: whether the error also reports the errors that a trial of the other jobs finds.

        Raises:
            TrainyardError: a config is invalid.
        """
        if not checked.wrong:
            return
        refused = {job.num for job, _ in checked.wrong}
        fit = [job for job in checked.all if job.num not in refused and not self._is_done(job)]
        raise self._refusal(checked.all, [*checked.wrong, *(self._trials.run(fit, ()).errors if tried else ())])

    def tried(self, checked: CheckedJobs, probes: Sequence[Task]) -> Sequence[TaskOutcome]:
        """Try jobs in a worker, and return the outcomes of the probes that run in the meantime.

        Raises:
            TrainyardError: the trial found an error, because of which nothing starts.
        """
        jobs = checked.all
        found = self._trials.run([job for job in jobs if not self._is_done(job)], probes)
        if self._refuses(found.errors, jobs):
            raise self._refusal(jobs, found.errors)
        return self._trials.run((), probes).probes if found.errors else found.probes

    def entries(self, jobs: Sequence[Job]) -> dict[int, Entry]:
        """Return the entries of these jobs for the manifest, before anything is written to it.

        Raises:
            TrainyardError: a number belongs to another job.
        """
        if self.starts_over(job.num for job in jobs):
            return {job.num: Entry(list(job.overrides)) for job in jobs}
        for job in jobs:
            self._manifest.check(job.num, job.overrides)
        return {job.num: self._manifest.entry(job.num, job.overrides) for job in jobs}

    def _numbers(self, new: Sequence[NewJob]) -> list[int]:
        """Return the numbers of new jobs.

        Raises:
            TrainyardError: there are more jobs than a sweep can have.
        """
        manifest = self._manifest
        given = [each.num for each in new if each.num is not None and each.num < FIRST_CLONE]
        free = max(manifest.next_num, max(given, default=-1) + 1)
        numbered = itertools.count(free)
        numbers = [next(numbered) if each.num is None else each.num for each in new]
        if (last := max((num for num in numbers if num not in manifest.entries), default=0)) >= FIRST_CLONE:
            raise TrainyardError(
                f"This sweep would have {last + 1:,} jobs, but a sweep has at most {FIRST_CLONE:,} jobs. "
                "Divide the jobs into several sweeps."
            )
        return numbers

    def _composed(
        self, overrides: Sequence[Sequence[str]], numbers: Sequence[int], places: Places
    ) -> tuple[list[Job], list[WrongJob]]:
        """Return the jobs with these overrides and numbers, composed and checked, and those whose configs are invalid,
        with the errors.

        Args:
            overrides: the overrides of each job.
            numbers: the number of each job.
            places: the directories of the earlier jobs, to which theirs are added.
        """
        jobs: list[Job] = []
        wrong: list[WrongJob] = []
        known = {} if self.starts_over(numbers) else self._manifest.entries
        subdirs = {num: known[num].subdir for num in numbers if num in known}
        origins = {num: it for num in numbers if num in known and (it := known[num].origin) is not None}
        for job, error in self._configs.checked(overrides, numbers, subdirs, origins):
            jobs.append(job)
            if error is not None:
                wrong.append((job, error))
        refused = {job.num for job, _ in wrong}
        wrong += places.take([job for job in jobs if job.num not in refused])
        return jobs, wrong

    def _later(self, listed: Sequence[Sequence[str]], jobs: Sequence[Job]) -> tuple[list[Job], list[WrongJob]]:
        """Return the listed jobs that are not among these, like `_composed`. They take their places when they are
        proposed."""
        proposed = {job.overrides for job in jobs}
        overrides = [own for own in listed if tuple(own) not in proposed]
        if not overrides:
            return [], []
        first = max((job.num for job in jobs if job.num < FIRST_CLONE), default=-1) + 1
        return self._composed(overrides, range(first, first + len(overrides)), self._places.copy())

    def _is_done(self, job: Job) -> bool:
        entry = self._manifest.entries.get(job.num)
        return entry is not None and not entry.is_left

    def _refuses(self, errors: Sequence[WrongJob], jobs: Sequence[Job]) -> bool:
        """Return whether nothing starts because of the errors that a trial found.

        A proposer that chooses values cannot know which ones the parts accept: such a job fails, and the others run.

        Args:
            errors: the errors, each with its job.
            jobs: all jobs.
        """
        if not self.from_proposer:
            return bool(errors)
        new = [job for job in jobs if job.num not in self._manifest.entries]  # a recorded job was accepted before
        refused = sum(job.num not in self._manifest.entries for job, _ in errors)
        return refused > 0 and (refused == len(new) or not self.proposer.explores)

    def _refusal(self, jobs: list[Job], wrong: Sequence[WrongJob]) -> TrainyardError:
        """Return the error that reports all errors in the configs of these jobs."""
        wrong = sorted(wrong, key=lambda each: each[0].num)
        plan = SweepPlan(jobs, {}, (), varying(jobs, self._command), self._directory)
        what = "None of these jobs was started." if self.begun else "Nothing was started."
        error = TrainyardError("\n".join([what, *told(wrong, plan, self._application.resumes)]))
        error.__cause__ = wrong[0][1]
        return error
