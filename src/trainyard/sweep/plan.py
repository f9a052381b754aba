"""Plan of a sweep, made and shown before anything starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import filter_overrides
from omegaconf import DictConfig, OmegaConf

from trainyard.config.distinct import JobSize
from trainyard.config.plain import is_open, plain
from trainyard.errors import counted
from trainyard.sweep.entry import Entry
from trainyard.sweep.events import Origin
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.report.rows import duration

SHOWN = 20  # maximum number of jobs, or stacks, of a plan on the terminal
FEWEST = 3  # minimum number of jobs of each stack there
SPANNED = 4  # up to this many numbers are listed one by one


class ConfigSource(Protocol):
    """Composes the configs of jobs."""

    def compose(self, job: Job) -> DictConfig:
        """Return the config of a job, with its `hydra` node: a new object each time."""

    def plain(self, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
        """Yield the config of each job in plain Python, unresolved, with its `hydra` node."""


@dataclass(frozen=True)
class Job:
    """Run of a sweep, numbered.

    Attributes:
        num: its number.
        overrides: its overrides.
        source: its config, or the object that composes it, because a sweep does not keep a config of 150 kB for each
            job.
        directory: its directory.
        values: its config in plain Python, resolved, without the `hydra` node; None if it was not needed. Equal parts
            of several jobs are the same object and must not be changed.
        slots: the number of slots that it takes.
        work_dir: its output directory in the config; None if the config names none.
        subdir: its `hydra.sweep.subdir`.
        known_process: its `process`, if known.
        origin: its origin, if it is a clone.
        cache: results of interpolations in its config that are resolved once (`${now:…}`); None for those of the sweep.
    """

    num: int
    overrides: tuple[str, ...]
    source: DictConfig | ConfigSource
    directory: Path
    values: dict[str, Any] | None = None
    slots: int = 1
    work_dir: str | None = None
    subdir: str | None = None
    known_process: Mapping[str, Any] | None = None
    origin: Origin | None = None
    cache: Any = None

    @property
    def number(self) -> int:
        """The `hydra.job.num` of its config: its own number, or that of the cloned job."""
        return self.num if self.origin is None else self.origin.number

    @property
    def config(self) -> DictConfig:
        """Composed config, with its `hydra` node: a new object each time, which may be changed."""
        return self.source if isinstance(self.source, DictConfig) else self.source.compose(self)

    @property
    def process(self) -> Mapping[str, Any]:
        """Settings for its process in its `hydra` node (`process_of`)."""
        return process_of(self.config) if self.known_process is None else self.known_process

    def setting(self, key: str) -> Any:
        """Return a value of its config; None if there is none. For most jobs, it is known without composing the
        config."""
        if self.values is None:
            return OmegaConf.select(self.config, key, throw_on_resolution_failure=False)
        found: Any = self.values
        for name in key.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    @property
    def chdir(self) -> bool:
        """Whether it changes to its directory."""
        return bool(self.process["chdir"])

    @cached_property
    def choices(self) -> dict[str, str]:
        """Overrides as a mapping: `{"optim.lr": "0.1", "model": "cnn"}`; the mappings for one key stay together."""
        found: dict[str, str] = {}
        for override in filter_overrides(self.overrides):
            name, sign, value = override.partition("=")
            key = name.lstrip("+")
            earlier = f"{found[key]} " if value.startswith("{") and key in found else ""
            found[key] = f"{earlier}{value}" if sign else "removed"
        return found


def plain_configs(jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
    """Yield the config of each job in plain Python, unresolved, with its `hydra` node.

    For jobs of the same sweep, this takes a fraction of the time of `Job.config`.
    """
    for _, group in groupby(jobs, key=lambda job: id(job.source)):
        alike = list(group)
        source = alike[0].source
        yield from [plain(source)] if isinstance(source, DictConfig) else source.plain(alike)


def process_of(config: DictConfig) -> dict[str, Any]:
    """Return the settings for the process in the `hydra` node of a job's config: logging, environment, names,
    folder."""
    hydra = config.hydra
    own = {key: plain(hydra._get_node(key)) for key in ("job_logging", "verbose", "output_subdir")}
    own["job"] = {key: plain(hydra.job._get_node(key)) for key in ("env_set", "name")}
    variables: Any = own["job"]["env_set"]
    if is_open(variables):
        variables = OmegaConf.to_container(hydra.job.env_set, resolve=True)
    return {"compared": own, "environment": variables, "chdir": hydra.job.chdir}


@dataclass(frozen=True)
class Stack:
    """Jobs that train as one program.

    Attributes:
        jobs: the jobs, in the order of their lanes.
        note: the reason for the width, for users.
    """

    jobs: tuple[Job, ...]
    note: str = ""

    def __str__(self) -> str:
        return spans([job.num for job in self.jobs])


def amount(size: float) -> str:
    """Format a number of bytes: `3.4 GB`."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB" if size < 1000 else f"{size / 1000:.3g} TB"


def spans(nums: Sequence[int]) -> str:
    """Format numbers in short: `#0-#7`, `#0, #2, … #14`."""
    first, last = nums[0], nums[-1]
    if last - first == len(nums) - 1:
        return f"#{first}-#{last}" if last > first else f"#{first}"
    if len(nums) <= SPANNED:
        return ", ".join(f"#{num}" for num in nums)
    return f"#{first}, #{nums[1]}, … #{last}"


@dataclass
class SweepPlan:
    """Jobs of a sweep, which of them will run, and their slots. It grows with the sweep.

    Args:
        jobs: the jobs, in the order of their numbers.
        entries: the manifest's entry of each, by number, with the decision on how it trains.
        slots: the slots.
        keys: the keys of the overrides that distinguish the jobs.
        directory: the sweep's directory.
        stacks: the jobs to run that train in stacks.
        alone: why other jobs run alone, by number.
        begun: the numbers of the jobs that an earlier process may have started, even if it was killed before it
            recorded this.
        sizes: the sizes of the results of jobs, by number, if known.
        seconds: the measured slot time of jobs without validation, by number.
        fed: whether other jobs take free lanes of stacks.
        on_agents: whether the slots are on other machines, each of which counts its GPUs from 0.
    """

    jobs: list[Job]
    entries: dict[int, Entry]
    slots: Sequence[Slot]
    keys: Sequence[str]
    directory: Path
    stacks: list[Stack] = field(default_factory=list)
    alone: dict[int, str] = field(default_factory=dict)
    begun: frozenset[int] = frozenset()
    sizes: Mapping[int, JobSize] = field(default_factory=dict)
    seconds: Mapping[int, float] = field(default_factory=dict)
    fed: bool = False
    on_agents: bool = False

    @property
    def left(self) -> list[Job]:
        """Jobs that are not done."""
        return [job for job in self.jobs if self.entries[job.num].is_left]

    @property
    def to_run(self) -> list[Job]:
        """Jobs that are not done and that no user has paused."""
        return [job for job in self.left if not self.entries[job.num].is_held]

    def extend(self, later: SweepPlan) -> None:
        """Add a later plan of the same sweep in time proportional to its jobs."""
        self.jobs += later.jobs
        self.stacks += later.stacks
        self.alone |= later.alone
        self.entries, self.keys, self.begun, self.sizes = later.entries, later.keys, later.begun, later.sizes

    def replace(self, job: Job) -> None:
        """Update a job whose overrides have changed."""
        self.jobs[next(index for index, each in enumerate(self.jobs) if each.num == job.num)] = job

    def name(self, job: Job) -> str:
        """Return a job's name: the overrides chosen for it, or its number if there are none."""
        return self.chosen(job) or f"#{job.num}"

    def label(self, job: Job) -> str:
        """Return a job's number, and the overrides chosen for it."""
        return f"#{job.num} {self.chosen(job)}".rstrip()

    def chosen(self, job: Job) -> str:
        """Return the overrides chosen for a job; empty if there are none."""
        return " ".join(f"{key}={job.choices[key]}" for key in self.keys if key in job.choices)

    def __str__(self) -> str:
        return self.text(SHOWN)

    def text(self, limit: int | None = None) -> str:
        """Return the plan as text, with at most `limit` of its jobs."""
        kinds = Counter((self._device(slot), slot.threads) for slot in self.slots)
        slots = ", ".join(
            f"{count} on {device} ({counted(threads, 'thread')} each)" for (device, threads), count in kinds.items()
        )
        states = Counter(self.entries[job.num].state for job in self.jobs)
        held = len(self.left) - len(self.to_run)
        before = f", {states['done']} already done" if states["done"] else ""
        before += "".join(f", {states[each]} {each}" for each in ("stopped", "pruned") if states[each])
        before += f", {held} paused by a user" if held else ""
        paused = f" ({states['paused'] - held} paused)" if states["paused"] > held else ""
        lines = [
            f"{counted(len(self.jobs), 'job')}{before}; {len(self.to_run)} to run{paused} on "
            f"{counted(len(self.slots), 'slot')}: {slots}.",
            f"Sweep: {self.directory}",
            *self._estimate(),
        ]
        sections = self._sections()
        each = None if limit is None else max(FEWEST, limit // max(1, len(sections)))
        shown = sections[:limit]
        for title, jobs, told in shown:
            lines += ([f"  {title}"] if title else []) + self._lines(jobs, each, "    " if title else "  ", told)
        if len(sections) > len(shown):
            lines.append(f"  … and {len(sections) - len(shown)} more")
        return "\n".join(lines)

    def _device(self, slot: Slot) -> str:
        return "GPUs of agents" if self.on_agents and slot.device != "cpu" else slot.device

    def _estimate(self) -> list[str]:
        """Return a line with the time, the disk space and the rows in MLflow of the jobs to run."""
        left = self.to_run
        known = [cost for entry in self.entries.values() if entry.state == "done" and (cost := entry.cost) is not None]
        told: list[str] = []
        slots = max(1, len(self.slots))
        if known and left:
            seconds = sum(known) / len(known) * sum(job.slots for job in left) / slots
            told.append(f"{duration(seconds)}, estimated from {counted(len(known), 'finished job')}")
        elif left and all(job.num in self.seconds for job in left):
            seconds = sum(self.seconds[job.num] for job in left) / min(slots, len(left))
            told.append(f"{duration(seconds)} of training (measured, without validation)")
        timed = bool(told)
        sizes = [self.sizes[job.num] for job in left if job.num in self.sizes]
        if sizes:
            scale = len(left) / len(sizes)
            told.append(f"{amount(scale * sum(size.checkpoints for size in sizes))} of checkpoints")
            rows = scale * sum(size.rows for size in sizes)
            told += [f"{rows:,.0f} rows of metrics in MLflow"] if rows else []
        unknown = " The time is unknown until the first job has finished." if told and not timed else ""
        return [f"About {'; '.join(told)}.{unknown}"] if told else []

    def _sections(self) -> list[tuple[str, Sequence[Job], bool]]:
        """Return the stacks, single jobs by reason, and the rest: each with a title, and whether it gives the
        reason."""
        sections: list[tuple[str, Sequence[Job], bool]] = []
        for stack in self.stacks:
            note = f" ({stack.note})" if stack.note else ""
            note += f": {len(stack.jobs)} lanes" if self.fed and len(self.left) > len(stack.jobs) else ""
            sections.append((f"{stack}  a stack of {len(stack.jobs)} on one slot{note}", stack.jobs, False))
        stacked = {job.num for stack in self.stacks for job in stack.jobs}
        rest = [job for job in self.jobs if job.num not in stacked]
        reasons = Counter(self.alone[job.num] for job in rest if job.num in self.alone)
        for reason in [reason for reason, count in reasons.items() if count > 1]:
            jobs = [job for job in rest if self.alone.get(job.num) == reason]
            sections.append((f"{spans([job.num for job in jobs])}  one by one: {reason}", jobs, True))
            rest = [job for job in rest if self.alone.get(job.num) != reason]
        return [*sections, ("", rest, False)] if rest else sections

    def _lines(self, jobs: Sequence[Job], limit: int | None, indent: str, told: bool) -> list[str]:
        shown = jobs[:limit]
        lines = []
        for job in shown:
            state = self.entries[job.num].state
            remarks = [] if state == "waiting" else [state]
            remarks += [f"{job.slots} slots"] if job.slots > 1 else []
            remarks += [self.alone[job.num]] if job.num in self.alone and not told else []
            remark = f"  ({'; '.join(remarks)})" if remarks else ""
            lines.append(f"{indent}#{job.num:<4} {self.chosen(job)}{remark}".rstrip())
        if len(jobs) > len(shown):
            lines.append(f"{indent}… and {len(jobs) - len(shown)} more")
        return lines
