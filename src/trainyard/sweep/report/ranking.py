"""Ranking of a sweep's jobs from best to worst, as a table of text."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from trainyard.sweep.report.rows import Direction, JobRow, duration, keys, number, varying

if TYPE_CHECKING:
    from rich.table import Table


def rank(rows: Sequence[JobRow], direction: Direction) -> list[JobRow]:
    """Return the rows, best first.

    Finished jobs come before all others. In both groups, jobs without an objective (None or NaN) come last. Ties go
    to the lower number.

    Args:
        rows: the jobs, in any order.
        direction: whether a high (`maximize`) or a low (`minimize`) objective is better.
    """
    sign = -1.0 if direction == "maximize" else 1.0

    def order(row: JobRow) -> tuple[bool, bool, float, int]:
        missing = row.objective is None or row.objective != row.objective
        return row.state != "done", missing, 0.0 if missing else sign * (row.objective or 0.0), row.num

    return sorted(rows, key=order)


def places(ranking: Sequence[JobRow]) -> Iterator[int | None]:
    """Yield the rank of each row, from 1; None for a job that has none. Equal objectives share a rank."""
    place, before = 0, None
    for index, row in enumerate(ranking, 1):
        if not row.ranked:
            yield None
            continue
        if row.objective != before:
            place, before = index, row.objective
        yield place


def table(rows: Sequence[JobRow], objective: str | None, direction: Direction, limit: int | None = 20) -> Table:
    """Return the ranking as a rich table: rank, job, what varied, objective, seconds, state.

    Args:
        rows: the jobs, in any order.
        objective: the objective's name, which heads its column.
        direction: whether a high or a low objective is better.
        limit: the number of jobs shown, best first; None shows all.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    ranking = rank(rows, direction)
    shown = ranking[:limit]
    columns = varying(rows) or keys(rows)
    caption = f"Best {len(shown)} of {len(ranking)} jobs" if len(shown) < len(ranking) else None
    result = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    # A Text: rich would read `[...]` in a plain string as markup.
    for name in ("rank", "job"):
        result.add_column(name, justify="right")
    for name in columns:
        result.add_column(Text(name), overflow="fold")
    result.add_column(Text(objective or "objective"), justify="right")
    result.add_column("time", justify="right")
    result.add_column("state")
    for place, row in zip(places(ranking), shown, strict=False):
        varied = (Text(row.overrides.get(name, "-")) for name in columns)
        result.add_row(
            "-" if place is None else str(place),
            str(row.num),
            *varied,
            number(row.objective),
            duration(row.seconds),
            row.state,
            style=None if row.state == "done" else "dim",
        )
    return result


def text(table: Table, width: int | None = None) -> str:
    """Return a table as plain text, for a log file or a pipe.

    Args:
        table: the result of `table`.
        width: its width in columns; None for the width at which nothing is folded.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(file=io.StringIO(), width=width or 10_000, color_system=None, force_terminal=False)
    if width is None:
        console.width = Measurement.get(console, console.options, table).maximum
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").split("\n")) + "\n"
