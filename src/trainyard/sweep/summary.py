"""Summary of a sweep for its own run in MLflow: the best job, the ranking, the data."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainyard.application import StartedAs
from trainyard.errors import TrainyardError, counted
from trainyard.redaction import redact
from trainyard.sweep.goals import Direction
from trainyard.sweep.report.ranking import places
from trainyard.sweep.report.repeats import configurations
from trainyard.sweep.report.rows import JobRow, front_of, measures, number, varying
from trainyard.track.journal import FILE as JOURNAL
from trainyard.track.lines import parsed
from trainyard.track.run_info import RunInfo

SHOWN = 10
"""Number of jobs in the description."""


class BestSoFar:
    """Best objective of the finished jobs.

    Attributes:
        value: the best objective; None if no job has one.
        count: the number of finished jobs.
    """

    def __init__(self, direction: Direction) -> None:
        self._sign = -1.0 if direction == "maximize" else 1.0
        self.value: float | None = None
        self.count = 0

    def add(self, value: Any) -> bool:
        """Add a finished job; return whether it counts because it has an objective."""
        if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
            return False
        self.count += 1
        if self.value is None or self._sign * value < self._sign * self.value:
            self.value = float(value)
        return True


def command() -> str:
    """Return the command line of this process, without credentials."""
    started = StartedAs.now()
    return redact(shlex.join(["python", *(started.command if started else ()), *sys.argv[1:]]))


def summary_tags(
    order: Sequence[JobRow], objective: str | None, direction: Direction, said: str, directory: str
) -> dict[str, str]:
    """Return the tags of a sweep's own run, in which the best job is linked (`Journal.linked_tags`).

    If jobs are repeats, this is the best job of the configuration with the best mean.

    Args:
        order: the jobs, best first.
        objective: the name of the metric that ranks them.
        direction: whether a high or a low objective is better.
        said: the command.
        directory: the directory of the sweep.
    """
    shown = order[:SHOWN]
    keys, ids = varying(order), {row.num: _id(row.directory) for row in shown}
    best = order[0] if order and order[0].ranked else None
    winner = next((each for each in configurations(order, direction) if each.is_whole), None)
    done = sum(row.state == "done" for row in order)
    are = "is" if done == 1 else "are"
    lines = [f"{done} of {counted(len(order), 'job')} {are} done.", "", f"`{said}`", "", f"in `{directory}`", ""]
    place_of = front_of(order)
    front = [row for row in order if place_of.get(row.num) == 1]
    measured = measures(order, objective)
    if front:
        linked = [f"#{row.num}" if ids.get(row.num) is None else f"[#{row.num}](run:{ids[row.num]})" for row in front]
        lines[:0] = [f"**Pareto front of {', '.join(measured)}: {', '.join(linked)}**", ""]
    elif best is not None and winner is not None:
        linked = [
            f"#{row.num}" if (of := _id(row.directory)) is None else f"[#{row.num}](run:{of})"
            for row in winner.rows[:SHOWN]
        ]
        margin = "" if winner.margin is None else f" ± {number(winner.margin, 2)} (95 %)"
        varied = ", ".join(f"`{key}={value}`" for key, value in winner.overrides.items()) or "all jobs"
        of_mean = f"mean {objective or 'objective'} {number(winner.mean)}{margin} over {counted(winner.n, 'job')}"
        lines[:0] = [f"**Best configuration: {varied}**, {of_mean}: {', '.join(linked)}", ""]
    elif best is not None:
        name = f"#{best.num}" if ids[best.num] is None else f"[#{best.num}](run:{ids[best.num]})"
        varied = ", ".join(f"`{key}={value}`" for key, value in best.overrides.items())
        given = f", with {varied}" if varied else ""
        lines[:0] = [f"**Best: {name}**, {objective or 'objective'} {number(best.objective)}{given}", ""]
    if keys or objective:
        heads = ["front" if front else "rank", "job", *keys, *measured, "state"]
        lines += [_row(heads), _row(["---"] * len(heads))]
    for place, row in zip(places(order, direction), shown, strict=False):
        job = f"#{row.num}" if ids[row.num] is None else f"[#{row.num}](run:{ids[row.num]})"
        cells = [row.overrides.get(key, "-") for key in keys]
        numbers = [number(row.value(name)) for name in measured]
        lines.append(_row(["-" if place is None else str(place), job, *cells, *numbers, row.outcome]))
    tags = {"mlflow.note.content": "\n".join(lines)}
    if front:
        tags["pareto_front"] = ", ".join(f"#{row.num}" for row in front)
    elif best is not None:
        tags |= {"winner.job": f"#{best.num}", "winner.value": repr(best.objective)}
        shared = best.overrides if winner is None else winner.overrides
        tags |= {f"winner.{key}": value for key, value in shared.items()}
        if winner is not None:
            tags |= {"winner.mean": repr(winner.mean), "winner.n": str(winner.n)}
        if (found := ids[best.num]) is not None:
            tags["winner.run"] = f"run:{found}"
    return tags


def data_sets(directories: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the data sets that jobs have recorded (`Journal.inputs`), each once."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for directory in directories:
        with suppress(OSError):
            for line in (directory / JOURNAL).read_bytes().splitlines(keepends=True):
                record = parsed(line) if line.startswith(b'{"kind":"inputs"') else None
                for each in record["inputs"] if record else ():
                    found.setdefault((each["name"], each["digest"]), each)
    return [*found.values()]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _id(directory: Path) -> str | None:
    with suppress(TrainyardError):
        return RunInfo.read(directory).id
    return None
