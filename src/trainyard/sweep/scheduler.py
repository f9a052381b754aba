"""The run of a plan: tasks are made of its jobs and groups, and what happens to tasks is noted for each job."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction

from trainyard.sweep import worker_jobs as work
from trainyard.sweep.executor.local import LocalExecutor
from trainyard.sweep.jobs import Event, Outcome, State, Task
from trainyard.sweep.manifest import Manifest
from trainyard.sweep.plan import Group, Job, Plan
from trainyard.sweep.progress import Watch
from trainyard.sweep.stacks import Fusing
from trainyard.sweep.tracking import SweepTracking
from trainyard.track.membership import Membership

GROUPS = "groups"  # the folder of what groups print


class Course:
    """Runs what is left of a plan, once.

    Args:
        plan: what there is to do.
        manifest: is told what becomes of each job.
        tracking: follows the jobs.
        executor: runs them.
        context: of Hydra.
        function: the task function.
        fusing: knows how to send a group.
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        tracking: SweepTracking,
        executor: LocalExecutor,
        context: HydraContext,
        function: TaskFunction,
        fusing: Fusing,
    ) -> None:
        self._plan = plan
        self._manifest = manifest
        self._tracking = tracking
        self._executor = executor
        self._context = context
        self._function = function
        self._fusing = fusing
        self._resumes = bool(getattr(function, "resumes", False))
        self._watch = Watch(plan)
        self._jobs = {job.num: job for job in plan.jobs}
        self._groups: dict[int, tuple[Group, work.GroupWork]] = {}  # by the number of the task
        self._outcomes: dict[int, Outcome] = {}  # of jobs

    def run(self) -> dict[int, Outcome]:
        """Run all.

        Returns:
            What became of each job, by its number. The value of one that is done is a `JobReturn`.
        """
        known = [entry.cost for entry in self._plan.entries.values() if entry.cost is not None]
        typical = statistics.median(known) if known else None
        fused = {job.num for group in self._plan.groups for job in group.jobs}
        # Groups first: a task of unknown length is started in the order given, and they are the longer ones.
        tasks = [self._group_task(number, group, typical) for number, group in enumerate(self._plan.groups, 1)]
        tasks += [self._task(job, typical) for job in self._plan.left if job.num not in fused]
        self._tracking.expect(self._plan.left)
        self._executor.on_event, self._executor.on_tick = self._on_event, self._on_tick
        with self._watch:
            self._executor.run(tasks)
        return self._outcomes

    # -- tasks ---------------------------------------------------------------------------------------------------------

    def _task(self, job: Job, typical: float | None = None, attempts: int = 0) -> Task:
        self._prepare(job)
        return Task(
            job.num,
            work.run,
            work.Work(self._context, self._function, job.config, Singleton.get_state(), self._membership(job)),
            expected_seconds=self._plan.entries[job.num].cost or typical,
            log=job.directory / "output.log",
            name=f"#{job.num}",
            attempts=attempts,
            slots=job.slots,
        )

    def _group_task(self, number: int, group: Group, typical: float | None) -> Task:
        for job in group.jobs:
            self._prepare(job)
        argument = self._fusing.work(group.jobs, [self._membership(job) for job in group.jobs])
        self._groups[-number] = group, argument
        costs = [self._plan.entries[job.num].cost or typical for job in group.jobs]
        first, last = group.jobs[0].num, group.jobs[-1].num
        return Task(
            -number,
            work.run_group,
            argument,
            expected_seconds=None if None in costs else sum(cost for cost in costs if cost is not None),
            log=self._plan.directory / GROUPS / f"{first}-{last}.log",
            name=str(group),
        )

    def _prepare(self, job: Job) -> None:
        if self._plan.entries[job.num].state != "waiting":
            self._go_on(job)
        job.directory.mkdir(parents=True, exist_ok=True)

    def _membership(self, job: Job) -> Membership | None:
        if not self._resumes:
            return None
        return Membership(self._tracking.parent, tuple(self._plan.keys), self._plan.name(job))

    def _go_on(self, job: Job) -> None:
        """Where there is another attempt, it goes on where this one has ended."""
        if self._resumes:
            job.config.resume = True

    # -- events --------------------------------------------------------------------------------------------------------

    def _on_tick(self) -> None:
        self._tracking.look()
        self._watch.tick()

    def _on_event(self, event: Event) -> None:
        if event.num in self._groups:
            self._on_group_event(event, *self._groups[event.num])
            return
        job, outcome = self._jobs[event.num], event.outcome
        if event.kind == "started":
            self._manifest.note(job.num, "running", attempt=event.attempt)
        elif outcome is None:
            self._go_on(job)
        else:
            self._conclude(job, outcome)
        self._watch.event(event)

    def _on_group_event(self, event: Event, group: Group, argument: work.GroupWork) -> None:
        outcome = event.outcome
        if event.kind == "started":
            for job in group.jobs:
                self._manifest.note(job.num, "running", attempt=event.attempt)
            self._watch.group_started(event, group)
        elif outcome is None:
            for job, member in zip(group.jobs, argument.members, strict=True):
                self._go_on(job)
                if self._resumes:
                    member.values["resume"] = True
            self._watch.group_again(event, group)
        else:
            self._watch.group_ended(event.num)
            self._conclude_group(group, outcome)

    def _conclude_group(self, group: Group, outcome: Outcome) -> None:
        if outcome.state == "done" and outcome.value.results is None:
            self._let_run_alone(group, outcome)
            return
        failed = []
        for index, job in enumerate(group.jobs):
            own = self._of_member(job, index, outcome)
            retries = self._executor.policy.retries
            if outcome.state == "done" and own.state == "failed" and outcome.attempts <= retries:
                self._go_on(job)
                self._watch.again(job, own.error)
                self._executor.add(self._task(job, attempts=outcome.attempts))
                continue
            self._conclude(job, own, len(group.jobs))
            self._watch.ended(job, own)
            if own.state == "failed" or (own.state == "timeout" and outcome.state == "done"):
                failed.append(job)
        if failed and outcome.state == "done" and self._executor.policy.fail_fast:
            self._executor.stop(f"stopped, for #{failed[0].num} failed")

    def _of_member(self, job: Job, index: int, outcome: Outcome) -> Outcome:
        """What became of a member, as if it had run alone."""
        if outcome.state != "done":
            return replace(outcome, num=job.num)
        result, timeout = outcome.value.results[index], self._executor.policy.timeout
        state: State = result.state
        value: Any = None
        error = result.error
        if state == "interrupted":
            error = error or "its group was interrupted"
            if timeout is not None and outcome.seconds >= timeout:
                state, error = "timeout", f"took longer than {timeout:g} s"
        elif state == "done":
            value = work.MemberReturn(job.config, result.value)
        return replace(outcome, num=job.num, state=state, value=value, error=error)

    def _let_run_alone(self, group: Group, outcome: Outcome) -> None:
        found = outcome.value
        self._watch.group_split(group, found.reason, found.traceback)
        for job in group.jobs:
            if found.traceback is not None:  # there may be something to go on from
                self._go_on(job)
            self._executor.add(self._task(job))

    def _conclude(self, job: Job, outcome: Outcome, width: int = 1) -> None:
        self._outcomes[job.num] = outcome
        if outcome.attempts or outcome.state != "interrupted":
            value = outcome.value.return_value if isinstance(outcome.value, JobReturn) else None
            fields: dict[str, Any] = {} if width == 1 else {"width": width}
            self._manifest.note(
                job.num, outcome.state, seconds=outcome.seconds, objective=value, error=outcome.error, **fields
            )
            self._tracking.ended(job)


__all__: Sequence[str] = ["Course"]
