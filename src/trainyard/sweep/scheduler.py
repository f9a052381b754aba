"""Scheduler: makes tasks of the jobs and stacks of a plan, and records the events of each job.

A decision that is made while the sweep runs (a stack is divided, or its jobs run one by one) is recorded before it is
acted on.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import DictConfig

from trainyard.sweep import worker_tasks
from trainyard.sweep.decisions import Decision
from trainyard.sweep.executor.local import LocalExecutor
from trainyard.sweep.executor.task import Task, TaskEvent, TaskOutcome, TaskState
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Job, Stack, SweepPlan
from trainyard.sweep.progress import SweepProgress
from trainyard.sweep.stacks import StackPlanner
from trainyard.sweep.sweepable import Sweepable
from trainyard.sweep.tracking import SweepTracking
from trainyard.track.sweep_position import SweepPosition

STACKS = "stacks"  # folder of the output of stacks


class Scheduler:
    """Runs the unfinished jobs of a plan, once.

    Args:
        plan: the plan.
        manifest: records the state of each job.
        tracking: follows the jobs.
        executor: runs them.
        context: Hydra's context.
        application: the jobs' application.
        stacks: prepares a stack for a worker.
    """

    def __init__(
        self,
        plan: SweepPlan,
        manifest: Manifest,
        tracking: SweepTracking,
        executor: LocalExecutor,
        context: HydraContext,
        application: Sweepable,
        stacks: StackPlanner,
    ) -> None:
        self._plan = plan
        self._manifest = manifest
        self._tracking = tracking
        self._executor = executor
        self._context = context
        self._application = application
        self._planner = stacks
        self._progress = SweepProgress(plan)
        self._jobs = {job.num: job for job in plan.jobs}
        self._configs: dict[int, DictConfig] = {}  # of the tasks of one job
        self._resuming: set[int] = set()
        self._stacks: dict[int, tuple[Stack, worker_tasks.StackWork]] = {}  # by the number of the task
        self._outcomes: dict[int, TaskOutcome] = {}  # of jobs

    def run(self) -> dict[int, TaskOutcome]:
        """Run all jobs.

        Returns:
            The outcome of each job, by its number. The value of one that is done is a `JobReturn`.
        """
        known = [entry.cost for entry in self._plan.entries.values() if entry.cost is not None]
        typical = statistics.median(known) if known else None
        stacked = {job.num for stack in self._plan.stacks for job in stack.jobs}
        # Stacks first: tasks of unknown length start in the order given, and stacks take longer than jobs.
        tasks = [self._stack_task(stack, typical) for stack in self._plan.stacks]
        tasks += [self._task(job, typical) for job in self._plan.left if job.num not in stacked]
        self._tracking.expect(self._plan.left)
        self._executor.on_event, self._executor.on_tick = self._on_event, self._on_tick
        with self._progress:
            self._executor.run(tasks)
        return self._outcomes

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def _task(self, job: Job, typical: float | None = None, attempts: int = 0) -> Task:
        self._prepare(job)
        config = self._configs[job.num] = job.config
        if job.num in self._resuming:
            config.resume = True
        return Task(
            job.num,
            worker_tasks.run_one,
            worker_tasks.JobWork(self._context, self._application, config, Singleton.get_state(), self._position(job)),
            expected_seconds=self._plan.entries[job.num].cost or typical,
            log=job.directory / "output.log",
            name=f"#{job.num}",
            attempts=attempts,
            slots=job.slots,
            threads=self._decision(job).threads,
        )

    def _stack_task(self, stack: Stack, typical: float | None = None) -> Task:
        number = len(self._stacks) + 1
        for job in stack.jobs:
            self._prepare(job)
        argument = self._planner.work(stack.jobs, [self._position(job) for job in stack.jobs])
        for job, own in zip(stack.jobs, argument.jobs, strict=True):
            if job.num in self._resuming:
                own.values["resume"] = True
        self._stacks[-number] = stack, argument
        costs = [self._plan.entries[job.num].cost or typical for job in stack.jobs]
        first, last = stack.jobs[0].num, stack.jobs[-1].num
        return Task(
            -number,
            worker_tasks.run_stack,
            argument,
            expected_seconds=None if None in costs else sum(cost for cost in costs if cost is not None),
            log=self._plan.directory / STACKS / f"{first}-{last}.log",
            name=str(stack),
            threads=self._decision(stack.jobs[0]).threads,
        )

    def _decision(self, job: Job) -> Decision:
        decision = self._plan.entries[job.num].decision
        assert decision is not None, "recorded before the jobs are run"
        return decision

    def _decide(self, groups: Sequence[Sequence[Job]], note: str) -> None:
        """Record that jobs go on in these groups, otherwise as before."""
        self._manifest.decide(
            [replace(self._decision(jobs[0]), nums=tuple(job.num for job in jobs), note=note) for jobs in groups]
        )

    def _prepare(self, job: Job) -> None:
        if self._plan.entries[job.num].state != "waiting" or job.num in self._plan.begun:
            self._go_on(job)
        job.directory.mkdir(parents=True, exist_ok=True)

    def _position(self, job: Job) -> SweepPosition:
        return SweepPosition(self._tracking.parent, tuple(self._plan.keys), self._plan.name(job))

    def _go_on(self, job: Job) -> None:
        """Set the job to resume, so that another attempt continues where this one ended."""
        if self._application.resumes:
            self._resuming.add(job.num)
            if job.num in self._configs:
                self._configs[job.num].resume = True

    # -- events --------------------------------------------------------------------------------------------------------

    def _on_tick(self) -> None:
        self._tracking.look()
        self._progress.tick()

    def _on_event(self, event: TaskEvent) -> None:
        if event.num in self._stacks:
            self._on_stack_event(event, *self._stacks[event.num])
            return
        job, outcome = self._jobs[event.num], event.outcome
        if event.kind == "started":
            self._manifest.note(job.num, "running", attempt=event.attempt)
        elif outcome is None:
            self._go_on(job)
        else:
            self._conclude(job, outcome)
        self._progress.event(event)

    def _on_stack_event(self, event: TaskEvent, stack: Stack, argument: worker_tasks.StackWork) -> None:
        outcome = event.outcome
        if event.kind == "started":
            for job in stack.jobs:
                self._manifest.note(job.num, "running", attempt=event.attempt)
            self._progress.stack_started(event, stack)
        elif outcome is None:
            for job, own in zip(stack.jobs, argument.jobs, strict=True):
                self._go_on(job)
                if self._application.resumes:
                    own.values["resume"] = True
            self._progress.stack_again(event, stack)
        else:
            self._progress.stack_ended(event.num)
            self._conclude_stack(stack, outcome)

    def _conclude_stack(self, stack: Stack, outcome: TaskOutcome) -> None:
        if outcome.state == "done" and outcome.value.results is None:
            self._regroup(stack, outcome.value)
            return
        failed = []
        outcomes = [self._of_stacked(job, index, outcome) for index, job in enumerate(stack.jobs)]
        again: list[Job] = []
        if outcome.state == "done" and outcome.attempts <= self._executor.policy.retries:
            again = [job for job, own in zip(stack.jobs, outcomes, strict=True) if own.state == "failed"]
        # Before the ends of the others: a stack of which some are done goes on with the rest.
        self._decide([[job] for job in again], "tried again after it failed in a stack")
        for job, own in zip(stack.jobs, outcomes, strict=True):
            if job in again:
                self._go_on(job)
                self._progress.again(job, own.error)
                self._executor.add(self._task(job, attempts=outcome.attempts))
                continue
            self._conclude(job, own, len(stack.jobs))
            self._progress.ended(job, own)
            if own.state == "failed" or (own.state == "timeout" and outcome.state == "done"):
                failed.append(job)
        if failed and outcome.state == "done" and self._executor.policy.fail_fast:
            self._executor.stop(f"stopped, for #{failed[0].num} failed")

    def _of_stacked(self, job: Job, index: int, outcome: TaskOutcome) -> TaskOutcome:
        """Return the outcome of a job of a stack, as if it had run alone."""
        if outcome.state != "done":
            return replace(outcome, num=job.num)
        result, timeout = outcome.value.results[index], self._executor.policy.timeout
        state: TaskState = result.state
        value: Any = None
        error = result.error
        if state == "interrupted":
            error = error or "its stack was interrupted"
            if timeout is not None and outcome.seconds >= timeout:
                state, error = "timeout", f"took longer than {timeout:g} s"
        elif state == "done":
            value = worker_tasks.StackedJobReturn(job.config, result.value)
        return replace(outcome, num=job.num, state=state, value=value, error=error)

    def _regroup(self, stack: Stack, found: worker_tasks.StackReturn) -> None:
        """Let the jobs of a stack that cannot go on as one go on in other groups, from their checkpoints."""
        indices = found.groups or [[index] for index in range(len(stack.jobs))]
        groups = [[stack.jobs[index] for index in group] for group in indices]
        self._decide(groups, found.reason)
        if found.groups:
            self._progress.stack_divided(stack, [Stack(tuple(group)) for group in groups], found.reason)
        else:
            self._progress.stack_split(stack, found.reason, found.traceback)
        for group in groups:
            self._executor.add(self._stack_task(Stack(tuple(group))) if len(group) > 1 else self._task(group[0]))

    def _conclude(self, job: Job, outcome: TaskOutcome, width: int = 1) -> None:
        self._outcomes[job.num] = outcome
        if outcome.attempts or outcome.state != "interrupted":
            value = outcome.value.return_value if isinstance(outcome.value, JobReturn) else None
            fields: dict[str, Any] = {} if width == 1 else {"width": width}
            self._manifest.note(
                job.num, outcome.state, seconds=outcome.seconds, objective=value, error=outcome.error, **fields
            )
            self._tracking.ended(job)


__all__: Sequence[str] = ["Scheduler"]
