"""What is shown while a sweep runs: a live table on a terminal, a line for each start and end elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from omegaconf import OmegaConf

from trainyard.sweep.jobs import Event
from trainyard.sweep.plan import Job, Plan
from trainyard.track import journal

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

_WORDS = {"done": "done", "failed": "FAILED", "timeout": "OUT OF TIME", "lost": "KILLED", "interrupted": "interrupted"}


class Watch:
    """Tells what happens to the jobs of a plan as it happens."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._jobs = {job.num: job for job in plan.jobs}
        self._objective = OmegaConf.select(plan.jobs[0].config, "objective", throw_on_resolution_failure=False)
        self._running: dict[int, tuple[Event, _Tail]] = {}
        self._ended = len(plan.jobs) - len(plan.left)
        self._before = self._ended
        self._begin = time.monotonic()
        self._next = 0.0
        self._live: Live | None = None

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

    def event(self, event: Event) -> None:
        """Tell of an event: failures whole, at once."""
        job = self._jobs[event.num]
        title = f"#{job.num} {self.plan.name(job)}"
        if event.kind == "started":
            self._running[event.num] = (event, _Tail(job, self._objective))
            if self._live is None:
                print(f"started  {title}", flush=True)
            return
        self._running.pop(event.num, None)
        outcome = event.outcome
        if outcome is None:
            print(f"again    {title}: {event.error}", flush=True)
            if event.traceback:
                print(event.traceback, flush=True)
            return
        self._ended += 1
        if outcome.state == "done":
            value = getattr(outcome.value, "return_value", None)
            number = f"  {value:.4f}" if isinstance(value, float) else ""
            print(
                f"done     {title}{number}  in {outcome.seconds:.1f} s  ({self._ended}/{len(self._jobs)})", flush=True
            )
        elif outcome.attempts:
            print(f"{_WORDS[outcome.state]}  {title}: {outcome.error}", flush=True)
            if outcome.state == "failed" and outcome.traceback:
                print(outcome.traceback, flush=True)
            print(f"         its output: {job.directory / 'output.log'}", flush=True)

    def tick(self) -> None:
        """Draw the live table again, twice a second."""
        if self._live is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.5
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        done, total = self._ended - self._before, len(self._jobs) - self._before
        spent = time.monotonic() - self._begin
        left = f", {timedelta(seconds=round(spent / done * (total - done)))} left" if done else ""
        table = Table(title=f"{self._ended}/{len(self._jobs)} jobs{left}", title_justify="left")
        for column in ("job", "", "slot", "epoch", "latest", "left"):
            table.add_column(column)
        for num, (event, tail) in sorted(self._running.items()):
            title = Text(self.plan.name(self._jobs[num]))  # in plain strings rich would read `[...]` as markup
            table.add_row(f"#{num}", title, str(event.slot), *tail.look())
        return table


class _Tail:
    """The end of a running job's journal: its epoch, how it does, and how long it has to go."""

    def __init__(self, job: Job, objective: Any) -> None:
        self._path = job.directory / journal.FILE
        self._objective = objective
        self._max_epochs = OmegaConf.select(job.config, "loop.max_epochs", throw_on_resolution_failure=False)
        self._offset = 0
        self._epoch: int | None = None
        self._latest = ""
        self._measured = False
        self._begin = time.monotonic()
        self._first = self._read() or 0  # of a job that goes on, epochs that took none of this time

    def look(self) -> tuple[str, str, str]:
        epoch, left = self._read(), ""
        if epoch is not None and epoch > self._first and isinstance(self._max_epochs, int):
            each = (time.monotonic() - self._begin) / (epoch - self._first)
            left = str(timedelta(seconds=round(each * max(0, self._max_epochs - epoch))))
        return "" if epoch is None else str(epoch), self._latest, left

    def _read(self) -> int | None:
        for record, offset in journal.read(self._path, self._offset):
            self._offset = offset
            if record["kind"] == "metrics":
                self._epoch = record.get("epoch", self._epoch)
                for key, value in record["values"].items():
                    if key == self._objective or (key == "train/loss" and not self._measured):
                        self._latest, self._measured = f"{key} {value:.4f}", key == self._objective
        return self._epoch
