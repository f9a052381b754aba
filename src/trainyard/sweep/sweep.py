"""A sweep from its points to its ranking: compose, check, plan, run, rank."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainyard.config.explain import explain
from trainyard.config.schema import resolve
from trainyard.errors import ConfigError, TrainyardError
from trainyard.sweep.compose.composer import Composer, SweepLoader, rare_collections
from trainyard.sweep.errors import InterruptedSweepError, SweepFailedError
from trainyard.sweep.executor.local import LocalExecutor
from trainyard.sweep.executor.slots import find_slots
from trainyard.sweep.jobs import Outcome, capacity
from trainyard.sweep.manifest import Entry, Manifest
from trainyard.sweep.plan import Job, Plan, varying
from trainyard.sweep.results import conclude, warm_up
from trainyard.sweep.scheduler import Course
from trainyard.sweep.stacks import Fusing
from trainyard.sweep.tracking import SweepTracking

# What jobs import, once in the process that they are forked from: our own trainings, and all others.
OURS = ("torch", "numpy.random", "trainyard.hooks", "trainyard.run.record", "trainyard.app", "trainyard.fused.runner")
FUSED = ("torch.fx.experimental.symbolic_shapes",)  # half a second, at the first loss under vmap
ANY = ("trainyard.sweep.worker_jobs",)
MULTIRUN = "multirun.yaml"  # the command; Hydra's basic sweeper writes it too


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
        grace: seconds that a job has to end when `timeout` or `fail_fast` ends it; then it is killed.
        fuse: train jobs that differ only in numbers as one program: `auto` as many as pays, `off`, or so many.
        dry_run: print the plan and stop.
    """

    jobs_per_gpu: int | Literal["auto"] = "auto"
    threads_per_job: int | Literal["auto"] = "auto"
    max_jobs: int | None = None
    retries: int = 0
    timeout: float | None = None
    fail_fast: bool = False
    grace: float = 30.0
    fuse: int | Literal["auto", "off"] = "auto"
    dry_run: bool = False

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Settings:
        """The settings that stand in `hydra.launcher`.

        Raises:
            ConfigError: one that there is not, or of another type.
        """
        kinds = get_type_hints(cls)
        if values.get("fuse") is False:  # how YAML reads `off`
            values = {**values, "fuse": "off"}
        for name, value in values.items():
            if name not in kinds:
                raise ConfigError("hydra.launcher", name, f"a setting of it: {', '.join(kinds)}", options=kinds)
            if not _fits(value, kinds[name]):
                raise ConfigError(f"hydra.launcher.{name}", value, _ACCEPTED[kinds[name]])
        return cls(**values)


_ACCEPTED = {
    bool: "true or false",
    int: "an integer",
    int | None: "an integer, or null",
    float: "a number of seconds",
    float | None: "a number of seconds, or null",
    int | Literal["auto"]: "an integer, or auto",
    int | Literal["auto", "off"]: "an integer, or auto or off",
}


def _fits(value: Any, kind: Any) -> bool:
    options = get_args(kind) or (kind,)
    if isinstance(value, str):
        return any(value in get_args(option) for option in options)
    return type(value) in options or (type(value) is int and float in options)


class Sweep:
    """Launches the jobs that a sweeper asks for, batch by batch. `close` ends it, with the ranking of all.

    A task function may say more of itself: `check`, a function that a job's config is put through before any job
    starts, and `resumes = True`, that it goes on from its checkpoint when its config says `resume: true`. With `fuse`
    it can train several jobs as one program: see `trainyard.sweep.stacks`. `slots`, given what `check` returns, is how
    many slots a job takes.

    Args:
        context: of Hydra.
        function: the task function.
        config: of the whole sweep.
        settings: how it runs.

    Raises:
        ConfigError: a setting that cannot work here.
    """

    def __init__(
        self, context: HydraContext, function: TaskFunction, config: DictConfig, settings: Settings = Settings()
    ) -> None:
        self.context = context
        self.function = function
        self.config = config
        self.settings = settings
        self.directory = Path(str(config.hydra.sweep.dir)).absolute()
        loader = context.config_loader
        self._composer = loader.composer if isinstance(loader, SweepLoader) else Composer(loader, config)
        try:
            self._slots = find_slots(settings.jobs_per_gpu, settings.threads_per_job, settings.max_jobs)
            self._executor = LocalExecutor(
                self._slots,
                retries=settings.retries,
                timeout=settings.timeout,
                fail_fast=settings.fail_fast,
                grace=settings.grace,
                preload=(*OURS, *FUSED * (settings.fuse != "off"), *ANY) if self._is_ours else ANY,
            )
            self._fusing = Fusing(context, function, settings.fuse, self._executor)
        except ConfigError as error:
            raise error.under("hydra.launcher") from None
        self._manifest = Manifest.open(self.directory)
        self._plan: Plan | None = None  # of all jobs so far
        self._tracking: SweepTracking | None = None
        self._open = ExitStack()
        self._open.callback(self._executor.close)

    def launch(self, points: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run the jobs that are not done yet.

        Args:
            points: the overrides of each job.
            first: the number of the first of them.

        Returns:
            What Hydra's sweepers expect: in order, each job's return value, or the error that ended it.

        Raises:
            TrainyardError: a config is wrong (none of these jobs has started then), or the sweep was interrupted.
            SweepFailedError: with `fail_fast`, a job of an earlier launch has failed.
        """
        before = self._plan.jobs if self._plan is not None else ()
        manifest, settings = self._manifest, self.settings
        if settings.fail_fast and any(manifest.entries[job.num].state != "done" for job in before):
            raise SweepFailedError(manifest)
        setup_globals()
        self._executor.start()  # gets ready while this process composes
        with rare_collections():
            jobs = self._checked(points, first)
        entries = self._entries(jobs)
        arranged = self._fusing.arrange([job for job in jobs if entries[job.num].state != "done"])
        keys = self._varying([*before, *jobs])
        plan = Plan(jobs, entries, self._slots, keys, self.directory, arranged.groups, arranged.alone)
        if settings.dry_run:
            print(plan)
            return []
        if self._plan is None:
            self._begin(jobs)
        for job in jobs:
            manifest.define(job.num, job.overrides)
        if self._plan is None:
            OmegaConf.save(self.config, self.directory / MULTIRUN)
        plan = replace(plan, entries=manifest.entries)
        print(plan, flush=True)
        self._plan = plan if self._plan is None else self._plan.followed_by(plan)
        if self._tracking is None:
            self._tracking = SweepTracking(self.directory, jobs[0].config if self._is_ours else None, self._plan)
        else:
            self._tracking.extend(self._plan)
        threading.Thread(target=warm_up, daemon=True).start()
        try:
            course = Course(plan, manifest, self._tracking, self._executor, self.context, self.function, self._fusing)
            outcomes = course.run()
        except KeyboardInterrupt:
            shipment = self._tracking.abort()
            self._plan = None  # ended at once: nothing is to be ranked
            self.close()
            if str(shipment):
                print(shipment)
            raise
        except BaseException:
            self._plan = None
            self.close()
            raise
        if self._executor.signum is not None:
            self.close()
            raise InterruptedSweepError(
                f"Interrupted. To finish what is left: the same command with hydra.sweep.dir={self.directory}",
                self._executor.signum,
            )
        return [self._returned(job, outcomes.get(job.num)) for job in jobs]

    def close(self) -> None:
        """Rank and report the jobs of all launches, wait for the shipper, and end the process that jobs fork from."""
        with self._open:
            plan, tracking = self._plan, self._tracking
            self._plan = self._tracking = None
            if plan is not None and tracking is not None:
                conclude(plan, tracking, self._is_ours)

    @property
    def _is_ours(self) -> bool:
        return bool(getattr(self.function, "resumes", False))

    def _begin(self, jobs: Sequence[Job]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._open.enter_context(self._manifest.held())
        if self._starts_over(jobs):
            # Hydra runs a finished sweep again when it is asked to; our own trainings are never repeated.
            self._manifest.clear()

    def _starts_over(self, jobs: Sequence[Job]) -> bool:
        return self._plan is None and not self._is_ours and self._manifest.is_done(job.num for job in jobs)

    def _entries(self, jobs: Sequence[Job]) -> dict[int, Entry]:
        """What is known of these jobs, before anything is noted.

        Raises:
            TrainyardError: a number is another job's.
        """
        if self._starts_over(jobs):
            return {job.num: Entry(list(job.overrides)) for job in jobs}
        for job in jobs:
            self._manifest.check(job.num, job.overrides)
        return {job.num: self._manifest.entry(job.num, job.overrides) for job in jobs}

    def _checked(self, points: Sequence[Sequence[str]], first: int) -> list[Job]:
        """The jobs of these points, composed and checked.

        Raises:
            TrainyardError: all that is wrong with them.
        """
        check = getattr(self.function, "check", None)
        jobs: list[Job] = []
        wrong: list[tuple[Job, Exception]] = []
        for num, (overrides, config) in enumerate(zip(points, self._composer.attempt_all(points), strict=True), first):
            job = Job(num, tuple(overrides), self.config, self.directory)
            if isinstance(config, Exception):
                wrong.append((job, config))
            else:
                try:
                    job = self._job(num, overrides, config)
                    with _known_to_hydra(job.config):
                        values = check(job.config) if check is not None else None
                        job = replace(job, slots=self._slots_of(values))
                        if self._fusing.active:
                            job = replace(job, values=values if isinstance(values, dict) else resolve(job.config))
                except (TrainyardError, OmegaConfBaseException) as error:
                    wrong.append((job, error))
            jobs.append(job)
        if wrong:
            plan = Plan(jobs, {}, (), self._varying(jobs), self.directory)
            what = "Nothing was started." if self._plan is None else "None of these jobs was started."
            raise TrainyardError("\n".join([what, *_told(wrong, plan, self._is_ours)])) from wrong[0][1]
        return jobs

    def _slots_of(self, values: Any) -> int:
        """How many slots a job takes.

        Raises:
            TrainyardError: more than there are.
        """
        tell = getattr(self.function, "slots", None)
        count, limit = 1 if tell is None else int(tell(values)), capacity(self._slots)
        if count > limit:
            most = self.settings.max_jobs
            few = "" if most is None else f" hydra.launcher.max_jobs={most} allows no more."
            raise TrainyardError(f"A job takes {count} slots, one for each device, of {limit} that there are.{few}")
        return count

    def _job(self, num: int, overrides: Sequence[str], config: DictConfig) -> Job:
        config.hydra.job.id = str(num)
        config.hydra.job.num = num
        with _known_to_hydra(config):
            directory = Path(_sweep_dir(config) or self.directory, str(config.hydra.sweep.subdir)).absolute()
        config.hydra.runtime.output_dir = str(directory)
        return Job(num, tuple(overrides), config, directory)

    def _varying(self, jobs: Sequence[Job]) -> list[str]:
        return varying(jobs, OmegaConf.to_container(self.config.hydra.overrides.task))  # type: ignore[arg-type]

    def _returned(self, job: Job, outcome: Outcome | None) -> JobReturn:
        """The job's return as Hydra knows it; of a job that was done before, what the manifest kept of it."""
        if outcome is not None and outcome.state == "done":
            return outcome.value  # type: ignore[no-any-return]
        result = JobReturn(overrides=list(filter_overrides(job.overrides)), working_dir=str(job.directory))
        entry = self._manifest.entries[job.num]
        if entry.state == "done":
            result.status, result.return_value = JobStatus.COMPLETED, entry.objective
        else:
            result.status, result.return_value = JobStatus.FAILED, SweepFailedError(self._manifest)
        return result


def _told(wrong: Sequence[tuple[Job, Exception]], plan: Plan, is_ours: bool) -> list[str]:
    """Every distinct error, how many jobs have it, and the first that does."""
    jobs: dict[str, list[Job]] = {}
    words: dict[tuple[str, str], str] = {}
    for job, error in wrong:
        # Values, which differ from point to point, are in later lines; to put one into words takes a tenth of a second.
        start = str(error).partition("\n")[0] or repr(error.__cause__), getattr(error, "override", "")
        if isinstance(error, TrainyardError):
            text = str(error)
        elif start in words:
            text = words[start]
        else:
            text = words[start] = (is_ours and _explained(error, job)) or f"{type(error).__name__}: {error}".strip()
        jobs.setdefault(text, []).append(job)
    return [
        f"{text}\n    in {len(those)} of {len(plan.jobs)} jobs, first in #{those[0].num}: {plan.name(those[0])}"
        for text, those in jobs.items()
    ]


def _explained(error: Exception, job: Job) -> str | None:
    """What Hydra says of a job of ours, in this project's words; None where it is not Hydra's."""
    hydra: Any = OmegaConf.to_container(job.config.hydra)
    folders = [source["path"] for source in hydra["runtime"]["config_sources"] if source["provider"] == "main"]
    overrides = [*hydra["overrides"]["hydra"], *filter_overrides(job.overrides)]
    with _hydra_left_alone():
        known = explain(error, overrides, folders[0], hydra["job"]["config_name"])
    return None if known is None else str(known)


@contextmanager
def _hydra_left_alone() -> Iterator[None]:
    hydra = GlobalHydra.instance().hydra
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = hydra


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
