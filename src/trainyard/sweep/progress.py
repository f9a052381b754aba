"""Progress display of a sweep: a live table on a terminal, a line for each start and end elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from trainyard.errors import counted
from trainyard.quoting import shell_path
from trainyard.sweep.executor.task import TaskEvent, TaskOutcome
from trainyard.sweep.goals import Goals, fronts
from trainyard.sweep.plan import Job, Stack, SweepPlan
from trainyard.sweep.report.rows import duration, number
from trainyard.track import journal

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

_WORDS = {
    "done": "done",
    "failed": "FAILED",
    "timeout": "OUT OF TIME",
    "lost": "LOST",
    "interrupted": "interrupted",
    "stopped": "stopped",
}
WORTH_TELLING = 60.0  # seconds
AROUND = 6  # lines of the live table around its rows
LOOKED_AT = 16  # journals of a stack that are read at each look


class SweepProgress:
    """Shows the events of jobs as they happen.

    Args:
        plan: the plan of the entire sweep, which grows.
        jobs: the jobs to show.
        goals: the goals by which they are compared, if these are more than the objective.
    """

    def __init__(self, plan: SweepPlan, jobs: Sequence[Job], goals: Goals | None = None) -> None:
        self.plan = plan
        self._goals = goals
        self._jobs = {job.num: job for job in jobs}
        self._objective = jobs[0].setting("objective")
        self._direction = jobs[0].setting("direction")
        entries = [plan.entries[job.num] for job in jobs]
        self._paused = {job.num for job, entry in zip(jobs, entries, strict=True) if entry.state == "paused"}
        self._pruned = sum(entry.state == "pruned" for entry in entries)
        self._values = [entry.objective for entry in entries if entry.state == "done"]
        self._running: dict[int, _Row] = {}  # by the number of the task
        self._ended = sum(not plan.entries[job.num].is_left for job in jobs)
        self._seconds, self._timed = 0.0, 0  # of a slot, for the jobs that are done; and their number
        self._at_once = 0  # the most units that have run at a time
        self._next = 0.0
        self._live: Live | None = None

    def extend(self, jobs: Sequence[Job]) -> None:
        """Add jobs."""
        self._jobs.update({job.num: job for job in jobs})

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def event(self, event: TaskEvent) -> None:
        """Show that a job that runs alone has started or is retried."""
        job = self._jobs[event.num]
        if event.kind == "started":
            self._started(event, f"#{job.num}", self.plan.chosen(job), [job])
        else:
            self.left(event.num)
            self.again(job, event.error, event.traceback)

    def stack_started(self, event: TaskEvent, stack: Stack) -> None:
        self._started(event, str(stack), f"a stack of {len(stack.jobs)}", stack.jobs)

    def joined(self, job: Job, stack: str) -> None:
        """Show that a job takes a free lane of a stack."""
        print(f"joined   {self.plan.label(job)}  ({stack})", flush=True)

    def stack_again(self, event: TaskEvent, stack: Stack) -> None:
        """Show that a stack is retried."""
        self._running.pop(event.num, None)
        print(f"retried  {stack}: {event.error}", flush=True)

    def stack_divided(self, stack: Stack, into: Sequence[Stack], reason: str) -> None:
        """Show that the jobs of a stack train in several from here on."""
        groups = f"{counted(len(into), 'group')} ({'; '.join(map(str, into))})"
        print(f"divided  {stack} into {groups}: {reason}", flush=True)

    def stack_split(self, stack: Stack, reason: str, trace: str | None) -> None:
        """Show that the jobs of a stack run alone from here on."""
        how = f"split    {stack} into single jobs"
        if len(stack.jobs) == 1:
            how = f"alone    {stack} continues as a single job"
        print(f"{how}: {reason}", flush=True)
        if trace:
            print(trace, flush=True)

    def left(self, num: int) -> None:
        """Remove a row from the table, by the number of its event; the results of its jobs are shown next."""
        self._running.pop(num, None)

    def again(self, job: Job, error: str | None, trace: str | None = None) -> None:
        """Show that a job is retried."""
        print(f"retried  {self.plan.label(job)}: {error}", flush=True)
        if trace:
            print(trace, flush=True)

    def dropped(self, job: Job) -> None:
        """Count a job that will not start."""
        self._ended += 1

    def paused(self, job: Job) -> None:
        """Show that a job has been paused."""
        self._paused.add(job.num)
        print(f"paused   {self.plan.label(job)}", flush=True)

    def held(self, job: Job) -> None:
        """Count a job that a user has paused while it did not run; `commanded` shows the command."""
        self._paused.add(job.num)

    def stopped(self, job: Job) -> None:
        """Count a job that a user has stopped while it did not run; `commanded` shows the command."""
        self._ended += 1
        self._paused.discard(job.num)

    def promoted(self, job: Job, how: str = "promoted") -> None:
        """Show that a paused job continues.

        Args:
            job: the job.
            how: the word for it; empty if a line about the job was already shown.
        """
        self._paused.discard(job.num)
        if how:
            print(f"{how:<8} {self.plan.label(job)}", flush=True)

    def inherited(self, job: Job, source: Job, at: int, apart: str = "") -> None:
        """Show that a job continues from another one, and the differences because of which both cannot share a
        stack."""
        self._jobs[job.num] = job
        why = f" (not in a stack with #{source.num}, because the two differ in {apart})" if apart else ""
        start = f"the checkpoint of #{source.num} at rung {at}"
        print(f"resumed  #{job.num} from {start}: {self.plan.name(job)}{why}", flush=True)

    def kept(self, job: Job, why: str) -> None:
        """Show that a job continues from its own checkpoint, because it cannot continue from another job."""
        print(
            f"resumed  #{job.num} from its own checkpoint, because it cannot continue from another job: {why}",
            flush=True,
        )

    def pruned(self, job: Job, at: int, value: float | None) -> None:
        """Show that a job will not continue.

        Args:
            job: the job.
            at: the position of its last report.
            value: the reported value; None if there is none.
        """
        self._ended += 1
        self._pruned += 1
        self._paused.discard(job.num)
        reported = "" if value is None else f"  {value:.4f} at rung {at}"
        print(f"pruned   {self.plan.label(job)}{reported}", flush=True)

    def commanded(self, command: str, told: str) -> None:
        """Show a command of a user, and the answer."""
        print(f"command  {command}: {told}", flush=True)

    def out_of_host_memory(self, peak: int, running: int, *, here: bool) -> None:
        """Show that the memory is insufficient, and the number of jobs at a time for which it may be sufficient.

        Args:
            peak: the memory of the process in bytes when the system killed it.
            running: the number of jobs and stacks that were running.
            here: whether the jobs run on this machine. The memory of other nodes is not known.
        """
        used = f"a process used {peak / 2**30:.1f} GiB when the available memory was exhausted"
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        fitting = max(1, min(running - 1, total // peak if peak else running - 1))
        advice = "reduce the memory of the job, or use a machine with more memory."
        if not here:
            advice = "reduce the memory of the job, or request more memory for each agent."
        elif running > 1:
            advice = f"set hydra.launcher.max_jobs={fitting} to run fewer jobs at a time."
        print(f"memory   {used}: {advice}", flush=True)

    def ended(
        self,
        job: Job,
        state: str,
        outcome: TaskOutcome,
        output: Path | None = None,
        *,
        width: int = 1,
        checkpoint: Path | None = None,
    ) -> None:
        """Show how a job ended.

        Args:
            job: the job that ended.
            state: its state.
            outcome: its outcome.
            output: the file of its output; None if it has a log instead.
            width: the number of jobs that trained together, among which the time is divided.
            checkpoint: the newest checkpoint of a stopped job; None if there is none.
        """
        self._ended += 1
        title = self.plan.label(job)
        if state == "done":
            self._seconds += outcome.seconds / width
            self._timed += 1
            value = getattr(outcome.value, "return_value", None)
            self._values.append(value)
            shown = f"  {value:.4f}" if isinstance(value, float) else self._several(value)
            print(
                f"done     {title}{shown}  in {outcome.seconds / width:.1f} s  ({self._ended}/{len(self._jobs)})",
                flush=True,
            )
            self._tell_time_left()
        elif outcome.attempts or state == "failed":
            print(f"{_WORDS[state]}  {title}: {outcome.error}", flush=True)
            if state == "failed" and outcome.traceback:
                print(outcome.traceback, flush=True)
            if state == "stopped":
                self._tell_clone(job, checkpoint)
            elif outcome.attempts:  # else there was no process
                what = "output" if output else "log"
                print(f"         {what}: {output or job.directory / f'{job.config.hydra.job.name}.log'}", flush=True)

    def _tell_clone(self, job: Job, checkpoint: Path | None) -> None:
        """Show how a stopped job can be continued: as another job, because it will not run again."""
        if checkpoint is not None:
            clone = f"trainyard sweep clone {shell_path(self.plan.directory)} {job.num} KEY=VALUE"
            print(f"         checkpoint: {checkpoint}\n         to continue from it: {clone}", flush=True)

    def tick(self) -> None:
        """Redraw the live table, twice a second."""
        if self._live is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.5
            self._live.update(self.table(max(1, self._live.console.size.height - AROUND)), refresh=True)

    def table(self, limit: int | None = None) -> Table:
        """Return the live table: a row for each running job or stack that fits; other jobs are not read."""
        from rich.table import Table
        from rich.text import Text

        left = f", {timedelta(seconds=round(self._left))} left" if self._timed else ""
        heading = f"{self._ended}/{len(self._jobs)} jobs{left}{self._further}"
        table = Table(title=heading, title_justify="left")
        for column in ("job", "", "slot", "epoch", "latest", "left"):
            table.add_column(column)
        rows = sorted(self._running.values(), key=lambda row: row.first)
        if len(rows) > len(rows[:limit]):
            table.caption = f"… and {len(rows) - len(rows[:limit])} more"
        for row in rows[:limit]:
            title = Text(row.title)  # a Text: rich would read `[...]` in a plain string as markup
            table.add_row(row.label, title, str(row.slot), *row.tail.look())
        return table

    @property
    def _left(self) -> float:
        """Remaining seconds, from the times of finished jobs. Running jobs count half."""
        under_way = sum(row.jobs for row in self._running.values())
        waiting = len(self._jobs) - self._ended - under_way
        return self._seconds / max(1, self._timed) * (waiting + under_way / 2) / max(1, self._at_once)

    def _tell_time_left(self) -> None:
        """Without a table, show once the remaining time of a long sweep, when the first job has ended."""
        if self._live is None and self._timed == 1 and self._left >= WORTH_TELLING:
            print(f"left     about {duration(self._left)}, estimated from this job", flush=True)

    @property
    def _further(self) -> str:
        """Further information about the jobs: how many are paused and pruned, and the best objective so far."""
        goals = self._goals
        found = self._values if goals is None else map(goals.best, self._values)
        values = [each for each in found if isinstance(each, float) and not math.isnan(each)]
        told = [f"{len(self._paused)} paused"] if self._paused else []
        told += [f"{self._pruned} pruned"] if self._pruned else []
        told += [f"best {(max if self._direction == 'maximize' else min)(values):.4f}"] if values else []
        if goals is not None and goals.several and self._values:
            measured = [each for each in map(goals.measured, self._values) if not goals.violation(each)]
            told += [f"{fronts([goals.losses(each) for each in measured]).count(1)} on the Pareto front"]
        return "".join(f", {each}" for each in told)

    def _several(self, value: Any) -> str:
        """Return the results of a job by name; empty if there are none."""
        found = {} if self._goals is None else self._goals.measured(value)
        return "  " + ", ".join(f"{name} {number(each)}" for name, each in found.items()) if found else ""

    def _started(self, event: TaskEvent, label: str, title: str, jobs: Sequence[Job]) -> None:
        tail = _Tail(jobs, self._objective)
        if self._live is not None:
            tail.begin()
        self._running[event.num] = _Row(label, title, event.slot, jobs[0].num, len(jobs), tail)
        self._at_once = max(self._at_once, len(self._running))
        if self._live is None:
            print(f"started  {label} {title}".rstrip(), flush=True)


@dataclass(frozen=True)
class _Row:
    """Row of the live table."""

    label: str
    title: str
    slot: int
    first: int
    jobs: int
    tail: _Tail


class _Tail:
    """Reader of the ends of running jobs' journals: progress, latest values and time left.

    If there are many jobs, only some of them are read at each update, in turn.
    """

    def __init__(self, jobs: Sequence[Job], objective: Any) -> None:
        self._journals = deque(_Journal(job.directory / journal.FILE, objective) for job in jobs)
        self._max_epochs = jobs[0].setting("loop.max_epochs")
        self._begin = time.monotonic()
        self._first = 0

    def begin(self) -> None:
        """Record the epochs that a resumed job finished earlier, which do not count for the time from here on."""
        self._first = max((each.read() or 0 for each in self._journals), default=0)

    def look(self) -> tuple[str, str, str]:
        for each in islice(self._journals, LOOKED_AT):
            each.read()
        self._journals.rotate(-LOOKED_AT)
        epochs = [each.epoch for each in self._journals if each.epoch is not None]
        if not epochs:
            return "", self._latest(), ""
        epoch, left = max(epochs), ""
        if epoch > self._first and isinstance(self._max_epochs, int):
            each_takes = (time.monotonic() - self._begin) / (epoch - self._first)
            left = str(timedelta(seconds=round(each_takes * max(0, self._max_epochs - epoch))))
        return str(epoch), self._latest(), left

    def _latest(self) -> str:
        """Return the latest number of one job, or the range from the lowest to the highest of several."""
        latest = [each.latest for each in self._journals if each.latest is not None]
        if not latest:
            return ""
        name = latest[0][0]
        values = sorted(value for key, value in latest if key == name and not math.isnan(value))
        if len(values) < 2:
            return f"{name} {latest[0][1]:.4f}"
        return f"{name} {values[0]:.4f} to {values[-1]:.4f}"


class _Journal:
    """End of a running job's journal.

    Attributes:
        epoch: the latest epoch.
        latest: name and value of the latest objective, or of the training loss while there is no objective.
    """

    def __init__(self, path: Path, objective: Any) -> None:
        self._path = path
        self._objective = objective
        self._offset = 0
        self._measured = False
        self.epoch: int | None = None
        self.latest: tuple[str, float] | None = None

    def read(self) -> int | None:
        """Read what is new, and return the epoch."""
        for record, offset in journal.read(self._path, self._offset):
            self._offset = offset
            if record["kind"] == "metrics":
                self.epoch = record.get("epoch", self.epoch)
                for key, value in record["values"].items():
                    if key == self._objective or (key == "train/loss" and not self._measured):
                        self.latest, self._measured = (key, value), key == self._objective
        return self.epoch
