"""Choice of stacks: which jobs of a plan train as one program, by kind, and how many at a time, by probing."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from hydra.core.singleton import Singleton
from hydra.types import HydraContext

from trainyard.checks import integer
from trainyard.errors import ConfigError, TrainyardError
from trainyard.sweep import kinds, worker_tasks
from trainyard.sweep.compose.plain import plain
from trainyard.sweep.errors import InterruptedSweepError
from trainyard.sweep.executor.local import LocalExecutor
from trainyard.sweep.executor.task import Task, TaskOutcome
from trainyard.sweep.executor.task_loop import Policy
from trainyard.sweep.plan import Job, Stack
from trainyard.sweep.sweepable import Sweepable
from trainyard.track.sweep_position import SweepPosition

PROBE = Policy(retries=0, timeout=180.0, fail_fast=False, grace=1.0)


@dataclass(frozen=True)
class Stacking:
    """Stacks in the order of their first jobs, and by number the reason why other jobs are in none."""

    stacks: list[Stack]
    alone: dict[int, str]


@dataclass(frozen=True)
class _KnownFit:
    """Known fit of a kind: its width, the reason if that is 1, the measurement, and the number of jobs."""

    width: int
    reason: str
    note: str
    tried: int


class StackPlanner:
    """Puts the jobs of a sweep into stacks, if their application can train several as one program.

    Args:
        context: Hydra's context.
        application: the jobs' application.
        setting: `auto` (the fastest width), `off`, or the width.
        executor: the executor on whose slots widths are probed.

    Raises:
        ConfigError: the width is invalid.
    """

    def __init__(
        self,
        context: HydraContext,
        application: Sweepable,
        setting: int | Literal["auto", "off"],
        executor: LocalExecutor,
    ) -> None:
        self._context = context
        self._application = application
        self._executor = executor
        self._fuse = application.fuse
        self._width = setting if isinstance(setting, int) else None
        if self._width is not None:
            integer("fuse", setting, at_least=1, other="auto or off")
        if self._width is not None and self._fuse is None:
            raise ConfigError("fuse", setting, "auto or off", hint="This application trains one job at a time.")
        self.active = self._fuse is not None and setting != "off" and self._width != 1
        self._fits: dict[str, _KnownFit] = {}  # by kind

    def plan(self, jobs: Sequence[Job]) -> Stacking:
        """Put these jobs into stacks; kinds without a known fit are probed, on the slots.

        Args:
            jobs: the jobs to run, in the order of their numbers, with their values.

        Raises:
            TrainyardError: jobs cannot be stacked although a width was given, or the probe was interrupted.
        """
        if not self.active or self._fuse is None:
            return Stacking([], {})
        alone = {job.num: "hydra.job.chdir=true" for job in jobs if job.config.hydra.job.chdir}
        alone |= {job.num: reason for job in jobs if (reason := _by_strategy(job))}
        fit = [job for job in jobs if job.num not in alone]
        values = [_compared(job) for job in fit]
        found_kinds = kinds.kinds(values, self._fuse.ALLOWED, self._fuse.NOT_COMPARED)
        found = kinds.reasons(found_kinds, [job.num for job in fit], [job.choices for job in fit])
        alone |= {fit[index].num: reason for index, reason in found.items()}
        several = [(kind.key, [fit[index] for index in kind.members]) for kind in found_kinds if len(kind.members) > 1]
        self._try([(key, members) for key, members in several if not self._knows(key, len(members))])
        stacks = []
        for key, members in several:
            known = self._fits[key]
            if known.width < 2:
                alone |= {job.num: known.reason for job in members}
                continue
            slots = math.ceil(len(self._executor.slots) * len(members) / len(jobs))
            for chunk in chunks(members, known.width, slots, exactly=self._width is not None):
                if len(chunk) > 1:
                    stacks.append(Stack(tuple(chunk), known.note))
                else:
                    alone[chunk[0].num] = f"left over by stacks of {known.width}"
        return Stacking(sorted(stacks, key=lambda stack: stack.jobs[0].num), alone)

    def _knows(self, key: str, count: int) -> bool:
        known = self._fits.get(key)
        return known is not None and (known.tried >= count or known.width < known.tried)

    def _try(self, several: Sequence[tuple[str, Sequence[Job]]]) -> None:
        if not several or self._fuse is None:
            return
        if sys.stdout.isatty():
            print("Measuring how many jobs are best trained as one program …", flush=True)
        tasks = []
        for num, (_, jobs) in enumerate(several):
            limit = min(len(jobs), self._width or self._fuse.widest(self._executor.slots[0].device))
            tasks.append(
                Task(
                    num,
                    worker_tasks.probe_stack,
                    replace(self.work(jobs[:limit]), of=len(jobs)),
                    name=f"the probe of {Stack(tuple(jobs))}",
                )
            )
        self._executor.on_event = self._executor.on_tick = None
        outcomes = self._executor.run(tasks, PROBE)
        if self._executor.signum is not None:
            raise InterruptedSweepError("Interrupted before the sweep began.", self._executor.signum)
        for (key, jobs), outcome in zip(several, outcomes, strict=True):
            self._fits[key] = self._judged(jobs, outcome)

    def _judged(self, jobs: Sequence[Job], outcome: TaskOutcome) -> _KnownFit:
        """Return the fit that a probe found.

        Raises:
            TrainyardError: these jobs cannot be stacked although a width was given.
        """
        if outcome.state == "done":
            fit = _KnownFit(outcome.value.width, outcome.value.reason or "", outcome.value.note, len(jobs))
        else:
            what = "took too long" if outcome.state == "timeout" else f"ended with: {outcome.error}"
            fit = _KnownFit(1, f"the probe {what}", "", len(jobs))
        if self._width is None:
            return fit
        if fit.width < 2 and not fit.note:  # with a note, a stack is possible but not faster
            raise TrainyardError(
                f"Nothing was started. hydra.launcher.fuse={self._width}: {Stack(tuple(jobs))} cannot be fused: "
                f"{fit.reason.rstrip('.')}."
            )
        return replace(fit, width=self._width)

    def work(self, jobs: Sequence[Job], positions: Sequence[SweepPosition] = ()) -> worker_tasks.StackWork:
        """Return the data that a worker needs for these jobs."""
        stacked = [worker_tasks.StackedJob(plain(job.config), job.directory) for job in jobs]
        return worker_tasks.StackWork(
            self._context, self._application, jobs[0].config, Singleton.get_state(), stacked, positions
        )


def chunks(jobs: Sequence[Job], width: int, slots: int, *, exactly: bool = False) -> Iterator[Sequence[Job]]:
    """Yield jobs of a kind in stacks, for a number of slots.

    Args:
        jobs: in the order of their numbers.
        width: the maximum width of a stack.
        slots: the number of slots; all are used if there are enough jobs for stacks of at least two.
        exactly: make stacks of the maximum width, regardless of the slots.
    """
    total = len(jobs)
    if exactly:
        yield from (jobs[first : first + width] for first in range(0, total, width))
        return
    count = max(math.ceil(total / width), min(slots, total // 2))
    bounds = [total * number // count for number in range(count + 1)]
    yield from (jobs[first:last] for first, last in pairwise(bounds))


def _by_strategy(job: Job) -> str:
    """Return why a job that trains or could train on several devices is alone; empty for other jobs."""
    node = (job.values or {}).get("strategy")
    if job.slots < 2 and not (isinstance(node, Mapping) and "launcher" in node):
        return ""
    strategy = f"strategy={job.config.hydra.runtime.choices.get('strategy', 'given')}"
    return f"{strategy} trains on several devices" if job.slots > 1 else f"{strategy} trains one job at a time"


def _compared(job: Job) -> dict[str, Any]:
    """Return the part of a job's config that decides which jobs may share a process with it."""
    assert job.values is not None
    hydra = job.config.hydra
    own = {key: plain(hydra._get_node(key)) for key in ("job_logging", "verbose", "output_subdir")}
    own["job"] = {key: plain(hydra.job._get_node(key)) for key in ("env_set", "name")}
    return {**job.values, "hydra": own}
