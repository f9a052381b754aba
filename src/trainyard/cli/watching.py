"""Watching a sweep: what `trainyard sweep attach` shows while it runs."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainyard.catalog.stored_sweep import StoredSweep, SweepJob
from trainyard.cli.output import number
from trainyard.errors import counted
from trainyard.sweep.report.rows import duration, front_of
from trainyard.track import journal

if TYPE_CHECKING:
    from rich.table import Table

_PAUSE = 0.5  # seconds between two looks
_ROWS = 20


@dataclass
class _Latest:
    """Latest epoch and number of a running job; each read continues where the last one ended."""

    path: Path
    objective: str | None
    offset: int = 0
    epoch: int | None = None
    name: str = ""
    value: float | None = None

    def look(self) -> None:
        for record, end in journal.read(self.path, self.offset):
            self.offset = end
            if record["kind"] == "metrics":
                self.epoch = record.get("epoch", self.epoch)
                for name in (self.objective, "train/loss"):
                    if name in record["values"] and self.name in ("", name, "train/loss"):
                        self.name, self.value = str(name), record["values"][name]
                        break


def watch(sweep: StoredSweep) -> bool:
    """Show a sweep until no process runs it, and return whether the sweep has ended. Ctrl-C ends only the display."""
    if not sweep.running:
        click.echo(f"No process is running this sweep: {sweep.counts() or 'no jobs yet'}.")
        return True
    try:
        if sys.stdout.isatty():
            _show_live(sweep)
        else:
            _print_changes(sweep)
    except KeyboardInterrupt:
        return False
    return True


def _show_live(sweep: StoredSweep) -> None:
    from rich.live import Live

    latest: dict[int, _Latest] = {}
    with Live(_table(sweep, latest), auto_refresh=False, transient=True) as live:
        runs = True
        while runs:
            runs = sweep.running  # asked before the last reading
            sweep.read_on()
            live.update(_table(sweep, latest), refresh=True)
            time.sleep(_PAUSE if runs else 0)


def _print_changes(sweep: StoredSweep) -> None:
    click.echo(_jobs(sweep))
    runs = True
    while runs:
        runs = sweep.running
        changed = sweep.read_on()
        rows = {row.num: row for row in sweep.rows()} if changed else {}
        for job in changed:
            row = rows[job.num]
            several = ", ".join(f"{name} {number(each)}" for name, each in row.metrics.items())
            value = "" if row.objective is None else f"  {several or number(row.objective)}"
            error = f"  {job.error}" if job.error else ""
            click.echo(f"{job.state:<11}  {row.label}{value}{error}")
        time.sleep(_PAUSE if runs else 0)


def _table(sweep: StoredSweep, latest: dict[int, _Latest]) -> Table:
    """Return a table of the running jobs: number, varying values, epoch, latest number, time."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    running = {job.num: job for job in sweep.jobs.values() if job.state == "running"}
    for num in latest.keys() - running.keys():
        del latest[num]
    more = f"\nand {len(running) - _ROWS} more running" if len(running) > _ROWS else ""
    result = Table(box=box.SIMPLE_HEAD, title=_head(sweep), title_justify="left", caption=more, title_style="")
    for name in ("job", "epoch", "latest", "time"):
        result.add_column(name, justify="right")
    result.add_column("varies", overflow="ellipsis", no_wrap=True)
    labels = {row.num: row.label.partition(" ")[2] for row in sweep.rows()} if running else {}
    for num, job in list(running.items())[:_ROWS]:
        own = latest.setdefault(num, _Latest(_journal_of(sweep, job), sweep.objective))
        own.look()
        value = "" if own.value is None else f"{own.name} {number(own.value)}"
        since = "" if job.began is None else duration(time.time() - job.began)
        result.add_row(f"#{num}", "" if own.epoch is None else str(own.epoch), value, since, Text(labels[num]))
    return result


def _head(sweep: StoredSweep) -> str:
    goals, jobs = sweep.goals, sweep.jobs.values()
    if goals is not None and goals.several:
        front = sum(place == 1 for place in front_of(sweep.rows()).values())
        return f"{_jobs(sweep)}; {front} on the Pareto front"
    found = [job.objective if goals is None else goals.best(job.value) for job in jobs]
    values = [value for value in found if value is not None]
    best = (max if sweep.direction == "maximize" else min)(values, default=None)
    told = "" if best is None else f"; best {sweep.objective or 'objective'} {number(best)}"
    return f"{_jobs(sweep)}{told}"


def _jobs(sweep: StoredSweep) -> str:
    return f"{counted(len(sweep.jobs), 'job')}: {sweep.counts()}" if sweep.jobs else "no jobs yet"


def _journal_of(sweep: StoredSweep, job: SweepJob) -> Path:
    return sweep.directory / job.subdir / journal.FILE
