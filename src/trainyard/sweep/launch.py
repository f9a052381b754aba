"""A sweep from its points to its ranking: compose, check, plan, run, rank."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from trainyard.errors import ConfigError, TrainyardError
from trainyard.sweep import work
from trainyard.sweep.composer import Composer
from trainyard.sweep.executor.local import LocalExecutor
from trainyard.sweep.executor.slots import find_slots
from trainyard.sweep.jobs import Event, Outcome, Task
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import SHOWN, Job, Plan, varying
from trainyard.sweep.results import conclude
from trainyard.sweep.tracking import SweepTracking
from trainyard.sweep.watch import Watch
from trainyard.track.membership import Membership

# What jobs import, once in the process that they are forked from: our own trainings, and all others.
OURS = ("torch", "numpy.random", "trainyard.hooks", "trainyard.record", "trainyard.app")
ANY = ("trainyard.sweep.work",)


class SweepFailedError(TrainyardError):
    """Some job of a sweep did not come to its end."""

    status = 1


class InterruptedSweepError(TrainyardError):
    """The sweep was asked to end; the same command goes on with it."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.status = 128 + signum


@dataclass(frozen=True)
class Settings:
    """How a sweep runs.

    Args:
        jobs_per_gpu: jobs that share a GPU; `auto` is 1.
        threads_per_job: threads of a job on the CPU; `auto` is 1.
        max_jobs: jobs at a time, at most; None for as many as there are slots.
        retries: further attempts at a job that fails.
        timeout: seconds after which a job is ended; None for never.
        fail_fast: stop the others when one has failed.
        dry_run: print the plan and stop.
    """

    jobs_per_gpu: int | Literal["auto"] = "auto"
    threads_per_job: int | Literal["auto"] = "auto"
    max_jobs: int | None = None
    retries: int = 0
    timeout: float | None = None
    fail_fast: bool = False
    dry_run: bool = False

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Settings:
        """The settings that stand in `hydra.launcher`.

        Raises:
            ConfigError: one that there is not, or of another type.
        """
        kinds = get_type_hints(cls)
        for name, value in values.items():
            if name not in kinds:
                raise ConfigError("hydra.launcher", name, f"a setting of it: {', '.join(kinds)}", options=kinds)
            if not _fits(value, kinds[name]):
                raise ConfigError(f"hydra.launcher.{name}", value, _ACCEPTED[kinds[name]])
        return cls(**values)


_ACCEPTED = {
    bool: "true or false",
    int: "a whole number",
    int | None: "null or a whole number",
    float | None: "null or a number of seconds",
    int | Literal["auto"]: "auto or a whole number",
}


def _fits(value: Any, kind: Any) -> bool:
    options = get_args(kind) or (kind,)
    if value == "auto":
        return Literal["auto"] in options
    return type(value) in options or (type(value) is int and float in options)


class Sweep:
    """Launches the jobs that a sweeper asks for, batch by batch.

    A task function may say more of itself: `check`, a function that a job's config is put through before any job
    starts, and `resumes = True`, that it goes on from its checkpoint when its config says `resume: true`.
    """

    def __init__(
        self, context: HydraContext, function: TaskFunction, config: DictConfig, settings: Settings = Settings()
    ) -> None:
        self.context = context
        self.function = function
        self.config = config
        self.settings = settings
        self.directory = Path(str(config.hydra.sweep.dir)).absolute()
        self._before: list[Job] = []  # of the batches before

    def launch(self, points: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run the jobs that are not done yet.

        Args:
            points: the overrides of each job.
            first: the number of the first of them.

        Returns:
            What Hydra's sweepers expect: in order, each job's return value, or the error that ended it.

        Raises:
            TrainyardError: a config is wrong (nothing has started then), or the sweep was interrupted.
        """
        setup_globals()
        settings = self.settings
        preload = (*OURS, *ANY) if self._is_ours else ANY
        try:
            slots = find_slots(settings.jobs_per_gpu, settings.threads_per_job, settings.max_jobs)
            executor = LocalExecutor(
                slots, retries=settings.retries, timeout=settings.timeout, fail_fast=settings.fail_fast, preload=preload
            )
        except ConfigError as error:
            raise error.under("hydra.launcher") from None
        with executor:
            jobs = self._compose(points, first)
            keys = varying(jobs, OmegaConf.to_container(self.config.hydra.overrides.task))  # type: ignore[arg-type]
            self._check(jobs, keys)
            manifest = Manifest.open(self.directory)
            if settings.dry_run:
                entries = {job.num: manifest.entry(job.num, job.overrides) for job in jobs}
                print(Plan(jobs, entries, slots, keys, self.directory))
                return []
            self.directory.mkdir(parents=True, exist_ok=True)
            with manifest.held():
                if not self._is_ours and not self._before and manifest.is_done(job.num for job in jobs):
                    # Hydra runs a finished sweep again when it is asked to; our own trainings are never repeated.
                    manifest.clear()
                for job in jobs:
                    manifest.define(job.num, job.overrides)
                plan = Plan(jobs, manifest.entries, slots, keys, self.directory)
                print(plan, flush=True)
                self._before += jobs
                whole = replace(plan, jobs=tuple(self._before))
                tracking = SweepTracking(self.directory, jobs[0].config if self._is_ours else None, whole)
                outcomes = self._run(executor, plan, manifest, tracking)
        conclude(whole, tracking, self._is_ours)
        if executor.signum is not None:
            raise InterruptedSweepError(
                f"Interrupted. To finish what is left: the same command with hydra.sweep.dir={self.directory}",
                executor.signum,
            )
        return [self._returned(job, manifest, outcomes.get(job.num)) for job in jobs]

    @property
    def _is_ours(self) -> bool:
        return bool(getattr(self.function, "resumes", False))

    def _compose(self, points: Sequence[Sequence[str]], first: int) -> list[Job]:
        composer = Composer(self.context.config_loader, self.config)
        jobs = []
        for num, (overrides, config) in enumerate(zip(points, composer.compose_all(points), strict=True), first):
            config.hydra.job.id = str(num)
            config.hydra.job.num = num
            with _known_to_hydra(config):
                directory = Path(_sweep_dir(config) or self.directory, str(config.hydra.sweep.subdir)).absolute()
            config.hydra.runtime.output_dir = str(directory)
            jobs.append(Job(num, tuple(overrides), config, directory))
        return jobs

    def _check(self, jobs: Sequence[Job], keys: Sequence[str]) -> None:
        check = getattr(self.function, "check", None)
        if check is None:
            return
        wrong: dict[str, list[Job]] = {}
        for job in jobs:
            try:
                with _known_to_hydra(job.config):
                    check(job.config, job.directory)
            except TrainyardError as error:
                wrong.setdefault(str(error), []).append(job)
        if wrong:
            plan = Plan(jobs, {}, (), keys, self.directory)
            told = [
                f"{message}\n    in {len(those)} of {len(jobs)} jobs, first in #{those[0].num}: {plan.name(those[0])}"
                for message, those in wrong.items()
            ]
            raise TrainyardError("\n".join(["Nothing was started.", *told]))

    def _run(
        self, executor: LocalExecutor, plan: Plan, manifest: Manifest, tracking: SweepTracking
    ) -> dict[int, Outcome]:
        watch = Watch(plan)
        jobs = {job.num: job for job in plan.jobs}

        def on_event(event: Event) -> None:
            job, outcome = jobs[event.num], event.outcome
            if event.kind == "started":
                manifest.note(job.num, "running", attempt=event.attempt)
            elif outcome is not None and (outcome.attempts or outcome.state != "interrupted"):
                value = outcome.value.return_value if outcome.state == "done" else None
                manifest.note(job.num, outcome.state, seconds=outcome.seconds, objective=value, error=outcome.error)
                tracking.ended(job)
            elif outcome is None and self._is_ours:  # another attempt, which goes on where this one has ended
                job.config.resume = True
            watch.event(event)

        def on_tick() -> None:
            tracking.look()
            watch.tick()

        executor.on_event, executor.on_tick = on_event, on_tick
        known = [entry.seconds for entry in plan.entries.values() if entry.seconds]
        typical = statistics.median(known) if known else None
        tasks = [self._task(job, plan, tracking.parent, typical) for job in plan.left]
        tracking.expect(plan.left)
        with watch:
            outcomes = executor.run(tasks)
        return {outcome.num: outcome for outcome in outcomes}

    def _task(self, job: Job, plan: Plan, parent: str | None, typical: float | None) -> Task:
        if self._is_ours and plan.entries[job.num].state != "waiting":
            job.config.resume = True
        job.directory.mkdir(parents=True, exist_ok=True)
        membership = Membership(parent, tuple(plan.keys), plan.name(job)) if self._is_ours else None
        return Task(
            job.num,
            work.run,
            work.Work(self.context, self.function, job.config, Singleton.get_state(), membership),
            expected_seconds=plan.entries[job.num].seconds or typical,
            log=job.directory / "output.log",
        )

    def _returned(self, job: Job, manifest: Manifest, outcome: Outcome | None) -> JobReturn:
        """The job's return as Hydra knows it; of a job that was done before, what the manifest kept of it."""
        if outcome is not None and outcome.state == "done":
            return outcome.value  # type: ignore[no-any-return]
        result = JobReturn(overrides=list(filter_overrides(job.overrides)), working_dir=str(job.directory))
        entry = manifest.entries[job.num]
        if entry.state == "done":
            result.status, result.return_value = JobStatus.COMPLETED, entry.objective
        else:
            result.status = JobStatus.FAILED
            failed = [f"#{num}" for num, other in manifest.entries.items() if other.state != "done"]
            shown = ", ".join(failed[:SHOWN]) + (", …" if len(failed) > SHOWN else "")
            result.return_value = SweepFailedError(
                f"{len(failed)} of {len(manifest.entries)} jobs did not come to their end: {shown}. "
                f"The same command with hydra.sweep.dir={self.directory} "
                f"tries them again."
            )
        return result


def _sweep_dir(config: DictConfig) -> str | None:
    """A job's own `hydra.sweep.dir`; None where it cannot be another than the sweep's."""
    text = str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["dir"])  # type: ignore[index, call-overload]
    return str(config.hydra.sweep.dir) if "${" in text.replace("${now:", "") else None


@contextmanager
def _known_to_hydra(config: DictConfig) -> Iterator[None]:
    """`${hydra:…}` reads from this config; `HydraConfig.set_config` does that too, on a copy that takes its time."""
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.cfg = config  # type: ignore[assignment]
    try:
        yield
    finally:
        hydra.cfg = before


__all__: list[Any] = ["InterruptedSweepError", "Settings", "Sweep", "SweepFailedError"]
