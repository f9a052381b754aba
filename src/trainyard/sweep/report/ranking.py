"""Ranking of a sweep's jobs from best to worst, as a table of text."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from trainyard.sweep.goals import Direction
from trainyard.sweep.report.repeats import Configuration, configurations, repeated, tuned
from trainyard.sweep.report.rows import JobRow, duration, front_of, keys, measures, number, varying

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def rank(rows: Sequence[JobRow], direction: Direction) -> list[JobRow]:
    """Return the rows, best first.

    Finished jobs come before all other jobs. Infeasible jobs come after feasible jobs, sorted by their violation. In
    each group, jobs without an objective (None or NaN) come last. Repeats are sorted by the mean of their
    configuration, and within a configuration by the objective. With several objectives, the jobs of the Pareto front
    come first, then the front of the remaining jobs, and so on; within a front, jobs are sorted by the first objective.
    Ties are sorted by job number.

    Args:
        rows: the jobs, in any order.
        direction: whether a high (`maximize`) or a low (`minimize`) objective is better.
    """
    sign = -1.0 if direction == "maximize" else 1.0
    front = front_of(rows)
    found = configurations(rows, direction)
    group = {row.num: place for place, each in enumerate(found) for row in each.rows}

    def order(row: JobRow) -> tuple[bool, float, bool, int, int, float, int]:
        missing = row.objective is None or row.objective != row.objective
        place = front.get(row.num, len(front) + 1)
        value = 0.0 if missing else sign * (row.objective or 0.0)
        return row.state != "done", row.violation, missing, place, group.get(row.num, 0), value, row.num

    return sorted(rows, key=order)


def places(ranking: Sequence[JobRow], direction: Direction) -> Iterator[int | None]:
    """Yield the rank of each row, from 1; None for a job that has none. Equal objectives share a rank.

    If jobs are repeats, this is the rank of the job's configuration (`configuration_places`). With several objectives,
    it is the number of the Pareto front.

    Args:
        ranking: the result of `rank`.
        direction: see `rank`.
    """
    if front := front_of(ranking):
        yield from (front.get(row.num) for row in ranking)
        return
    if found := configurations(ranking, direction):
        own = {
            row.num: place
            for each, place in zip(found, configuration_places(found), strict=True)
            for row in each.rows
            if row.ranked
        }
        yield from (own.get(row.num) for row in ranking)
        return
    yield from _shared_places(row.objective if row.ranked else None for row in ranking)


def configuration_places(found: Sequence[Configuration]) -> Iterator[int | None]:
    """Yield the rank of each configuration; None for one with fewer finished jobs than others have jobs.

    Equal means share a rank.
    """
    yield from _shared_places(each.mean if each.is_whole else None for each in found)


def _shared_places(values: Iterable[float | None]) -> Iterator[int | None]:
    """Yield the place of each value in their order, from 1; equal neighbors share one, and None has none."""
    place: int | None = None
    before: float | None = None
    for index, value in enumerate(values, 1):
        if value is None:
            yield None
            continue
        if value != before:
            place, before = index, value
        yield place


def table(
    rows: Sequence[JobRow], objective: str | None, direction: Direction, limit: int | None = 20
) -> RenderableType:
    """Return the ranking as a rich table: rank, job, varied values, objective, seconds, state.

    With several objectives, the rank is the number of the Pareto front, and each objective has a column.

    If there are repeats, a table of the configurations with their means comes first.

    Args:
        rows: the jobs, in any order.
        objective: the objective's name, which is the header of its column.
        direction: whether a high or a low objective is better.
        limit: the number of shown jobs, best first; None: all jobs.
    """
    from rich.console import Group
    from rich.text import Text

    ranking = rank(rows, direction)
    shown = ranking[:limit]
    columns = varying(rows) or keys(rows)
    means = means_table(rows, objective, direction, limit)
    order = ", by the rank of their configuration" if means is not None else ""
    caption = f"Best {len(shown)} of {len(ranking)} jobs{order}" if len(shown) < len(ranking) else None
    measured = measures(rows, objective)
    first = "front" if front_of(rows) else "rank"
    result = _empty([first, "job"], columns, [*measured, "time"], caption)
    result.add_column("state")
    for place, row in zip(places(ranking, direction), shown, strict=False):
        varied = (Text(row.overrides.get(name, "-")) for name in columns)
        result.add_row(
            "-" if place is None else str(place),
            str(row.num),
            *varied,
            *(number(row.value(name)) for name in measured),
            duration(row.seconds),
            row.outcome,
            style=None if row.outcome == "done" else "dim",
        )
    return result if means is None else Group(means, result)


def means_table(
    rows: Sequence[JobRow], objective: str | None, direction: Direction, limit: int | None = 20
) -> Table | None:
    """Return the configurations by the means of their repeats: rank, what varied, mean, 95 %
    confidence interval, std, n; None without repeats.

    Args:
        rows, objective, direction: see `table`.
        limit: the number of configurations shown.
    """
    from rich.text import Text

    found = configurations(rows, direction)
    if not found:
        return None
    names = tuned(rows)
    over = ", ".join(repeated(found))
    more = f". Best {limit} of {len(found)} configurations" if limit is not None and limit < len(found) else ""
    result = _empty(
        ["rank"], names, [f"mean {objective or 'objective'}", "95 %", "std", "n"], f"Means over {over}{more}"
    )
    for place, each in zip(configuration_places(found), found[:limit], strict=False):
        result.add_row(
            "-" if place is None else str(place),
            *(Text(each.overrides.get(name, "-")) for name in names),
            number(each.mean),
            "-" if each.margin is None else f"±{number(each.margin, 2)}",
            number(each.std, 2),
            each.count,
            style=None if each.is_whole else "dim",
        )
    return result


def _empty(first: Sequence[str], columns: Sequence[str], numbers: Sequence[str], caption: str | None) -> Table:
    """Return a table without rows: columns of numbers, of overrides, and of numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    # A Text: rich would read `[...]` in a plain string as markup.
    for name in first:
        result.add_column(name, justify="right")
    for name in columns:
        result.add_column(Text(name), overflow="fold")
    for name in numbers:
        result.add_column(Text(name), justify="right")
    return result


def text(table: RenderableType, width: int | None = None) -> str:
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
