"""End of a sweep: the ranking, the result files and the report."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from trainyard.application import StartedAs, continuation
from trainyard.errors import TrainyardError
from trainyard.quoting import shell_path
from trainyard.sweep.goals import Direction, Goals
from trainyard.sweep.identity import is_population
from trainyard.sweep.plan import SHOWN, Job, SweepPlan
from trainyard.sweep.proposers import Proposer
from trainyard.sweep.report import JobRow, ranking
from trainyard.sweep.report.repeats import history
from trainyard.sweep.tracking import SweepTracking
from trainyard.track import Status

log = logging.getLogger(__name__)


WARM_UP_AFTER = 1.0
"""Seconds until the first jobs have been launched."""


def warm_up_later(proposer: Proposer) -> None:
    """Import the modules for the end of a sweep in a thread while the jobs run, which takes one to two seconds."""
    thread = threading.Timer(WARM_UP_AFTER, _warm_up, (_is_search(proposer),))
    thread.daemon = True
    thread.start()


def _is_search(proposer: Proposer) -> bool:
    return "sampler" in proposer.identity


def _warm_up(searched: bool) -> None:
    import pandas  # type: ignore[import-untyped,unused-ignore] # noqa: F401

    from trainyard.sweep.report import (
        html,  # noqa: F401
        result_files,  # noqa: F401
    )

    if searched:
        with suppress(ImportError):
            import optuna.importance  # noqa: F401


def conclude(
    plan: SweepPlan, tracking: SweepTracking, named: bool, proposer: Proposer, interrupted: bool = False
) -> None:
    """Print the ranking, write `results.csv`, `results.parquet` and `report.html`, and end the sweep's MLflow run.

    Args:
        plan: the plan of all jobs so far.
        tracking: the sweep's tracking.
        named: whether the config names the `objective` and its `direction`. If not, lower is better.
        proposer: the proposer that chose the jobs.
        interrupted: whether a signal has ended the sweep; its run is then KILLED, like those of its jobs.
    """
    from trainyard.sweep.report import html, journals, result_files

    config, directory = plan.jobs[0].config, plan.directory
    name = OmegaConf.select(config, "objective") if named else None
    direction: Direction = (OmegaConf.select(config, "direction") if named else None) or "minimize"
    goals = proposer.goals
    if goals is not None:
        name, direction = goals.names[0], goals.directions[0]
    rows = [_row(job, plan, goals, in_population=is_population(proposer.identity)) for job in plan.jobs]
    files: list[Path] = []
    numbers: dict[int, journals.JobNumbers] = {}
    report: html.Report | None = None
    with _reported("ranking"):
        table = ranking.table(rows, name, direction)
        if sys.stdout.isatty():
            Console().print(table)
        else:
            print(ranking.text(table))
    for line in () if interrupted else proposer.ending:
        print(line)
    if held := [job.num for job in plan.jobs if plan.entries[job.num].is_held]:
        print(_told_held(held, directory))
    with _reported("results"):
        numbers = journals.read_all(rows, name, direction)
        files += result_files.write(rows, directory, direction, name, numbers)
    with _reported("summary"):
        tracking.summarize(plan, rows, name, direction)
    with _reported("report"):
        title = f"{directory.parent.name} {directory.name}"
        report = html.Report(
            rows,
            directory,
            title=title,
            objective=name,
            direction=direction,
            searched=_is_search(proposer),
            goals=goals,
            found=numbers,
            has_seed=OmegaConf.select(config, "seed", throw_on_resolution_failure=False) is not None,
        )
        files.append(report.write())
        print(f"Report: {files[-1]}")
    tracking.write_plan(plan)  # with the jobs that came while others ran
    paused = [job for job in plan.left if plan.entries[job.num].state == "paused"]
    status: Status = "FINISHED" if len(paused) == len(plan.left) else "KILLED" if interrupted else "FAILED"
    shipment = tracking.finish(files, status, paused=[job.directory for job in paused])
    if report is not None:
        with _reported("report"):
            report.add_links()
    if shipment.arrived:
        print(f"MLflow: {shipment.arrived}")
    if str(shipment):
        print(shipment)


def _told_held(held: Sequence[int], directory: Path) -> str:
    """Return what to do about the jobs that a user has paused."""
    shown = ", ".join(f"#{num}" for num in held[:SHOWN]) + (", …" if len(held) > SHOWN else "")
    which, job = ("one of these jobs", "JOB") if held[1:] else ("the job", str(held[0]))
    first = f"`trainyard sweep resume {shell_path(directory)} {job}`"
    then = continuation(directory, recorded=StartedAs.now() is not None)
    return f"A user has paused {shown}. To resume {which}, run {first}, and then {then}."


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Report an error in one line; an error in the output of a sweep (such as a full disk) does not make the sweep
    fail."""
    try:
        yield
    except TrainyardError as error:
        log.warning("%s", error)
        log.debug("", exc_info=True)
    except Exception as error:
        log.warning("The %s of the sweep could not be written: %s: %s", what, type(error).__name__, error)
        log.debug("", exc_info=True)


def _row(job: Job, plan: SweepPlan, goals: Goals | None, *, in_population: bool) -> JobRow:
    entry = plan.entries[job.num]
    row = JobRow(
        num=job.num,
        overrides={key: job.choices[key] for key in plan.keys if key in job.choices},
        state=entry.state,
        objective=None,
        seconds=entry.cost,
        directory=job.directory,
        error=entry.error,
        history=history(job.num, job.overrides, in_population=in_population),
    )
    return row.graded(entry.objective, goals)
