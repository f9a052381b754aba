"""Charts: optimization history, parallel coordinates, one parameter against the objective, importance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from trainyard.sweep.goals import Direction
from trainyard.sweep.report.axes import Axis, Tick, of_parameter
from trainyard.sweep.report.rows import JobRow, front_of, number
from trainyard.sweep.report.svg import Frame, dot, drawing, line, objective_axis, path, spaced, text


def parallel(ranking: Sequence[JobRow], names: Sequence[str], objective: str, shade: Mapping[int, str]) -> str:
    """Draw parallel coordinates: an axis for each parameter and the objective, a line for each finished job.

    The lines of jobs that share a value lie side by side, the best on top.

    Args:
        ranking: the jobs, best first; the best are drawn on top.
        names: the parameters.
        objective: the objective's name.
        shade: the class that colours each job, by its number.
    """
    rows = [row for row in ranking if row.ranked]
    axes = [of_parameter(name, [row.overrides.get(name) for row in rows]) for name in names]
    axes.append(objective_axis(rows, objective))
    width, height, margin = max(1080.0, 130.0 * len(axes) + 60), 380.0, 90.0
    top, floor = 52.0, height - 26
    across = [margin + index * (width - 2 * margin) / (len(axes) - 1) for index in range(len(axes))]
    spreads = [*(_spread(axis, floor - top) for axis in axes[:-1]), 0.0]
    parts = []
    for index in reversed(range(len(rows))):
        aside = 0.5 - index / max(1, len(rows) - 1)  # the best on top
        points = [
            (x, floor - place * (floor - top) - aside * spread)
            for x, axis, spread in zip(across, axes, spreads, strict=True)
            if (place := axis.places[index]) is not None
        ]
        parts.append(path(points, rows[index], shade[rows[index].num], _tip(rows[index])))
    room = (width - 2 * margin) / (len(axes) - 1)
    for index, (x, axis) in enumerate(zip(across, axes, strict=True)):
        last = index == len(axes) - 1
        parts.append(line((x, top - 16), (x, floor + 16), "axis"))
        parts.append(text(x, 18, axis.label, "name middle", longest=int(min(room, 2 * margin) / 6.8)))
        for tick in spaced(axis.ticks, floor - top, gap=14):
            y = floor - tick.place * (floor - top)
            parts.append(line((x - 3, y), (x + 3, y), "axis"))
            parts.append(text(x + (7 if last else -7), y + 4, tick.label, "halo" if last else "halo end", longest=13))
    return drawing(width, height, parts, f"Parallel coordinates of {', '.join(names)} and {objective}")


def _repeats(axis: Axis) -> bool:
    """Return whether on average at least two jobs share a value."""
    return 2 * len(set(axis.places)) <= len(axis.places)


def _spread(axis: Axis, length: float) -> float:
    """Return the pixels over which the lines of jobs that share a value are spread, so that all are visible."""
    if not _repeats(axis):
        return 0.0
    places = sorted({place for place in axis.places if place is not None})
    least = min((after - before for before, after in pairwise(places)), default=1.0)
    return min(26.0, 0.6 * least * length)


def scatter(ranking: Sequence[JobRow], name: str, objective: str, shade: Mapping[int, str]) -> str:
    """Draw one parameter against the objective; if jobs share values, a bar marks the median of each value."""
    rows = [row for row in ranking if row.ranked]
    across = of_parameter(name, [row.overrides.get(name) for row in rows])
    up = objective_axis(rows, objective)
    frame = Frame(350, 260, inset=16)
    parts = frame.axes(across.ticks, up.ticks, name, objective)
    parts += _medians(frame, across, up)
    for row, x, y in reversed(list(zip(rows, across.places, up.places, strict=True))):
        if x is not None and y is not None:
            parts.append(dot((frame.x(x), frame.y(y)), row, shade[row.num], _tip(row)))
    return drawing(frame.width, frame.height, parts, f"{name} against {objective}")


def _medians(frame: Frame, across: Axis, up: Axis) -> list[str]:
    if not _repeats(across):
        return []
    columns: dict[float, list[float]] = defaultdict(list)
    for x, y in zip(across.places, up.places, strict=True):
        if x is not None and y is not None:
            columns[x].append(y)
    shared = ((frame.x(x), frame.y(median(values))) for x, values in columns.items() if len(values) > 1)
    return [line((x - 11, y), (x + 11, y), "median") for x, y in shared]


def history(ranking: Sequence[JobRow], objective: str, direction: Direction, shade: Mapping[int, str]) -> str:
    """Draw the objectives of the finished jobs in the order of their numbers, and a line of the best so far.

    Args:
        ranking: the jobs, of which at least one finished with an objective.
        objective: the objective's name.
        direction: whether a high or a low objective is better.
        shade: the class that colours each job, by its number.
    """
    rows = sorted((row for row in ranking if row.ranked), key=lambda row: row.num)
    up = objective_axis(rows, objective)
    last = max(len(rows) - 1, 1)
    ticks = [Tick(index / last, str(row.num)) for index, row in enumerate(rows)]
    frame = Frame(540, 320)
    parts = frame.axes(ticks, up.ticks, "job", objective)
    better = max if direction == "maximize" else min
    best: tuple[float, float] | None = None
    dots = []
    for index, (row, place) in enumerate(zip(rows, up.places, strict=True)):
        if place is None:
            continue
        x, y = frame.x(index / last), frame.y(place)
        dots.append(dot((x, y), row, shade[row.num], _tip(row)))
        if best is None:
            best = x, place
            continue
        before, held = best
        best = x, better(held, place)
        parts.append(line((before, frame.y(held)), (x, frame.y(held)), "median"))
        parts.append(line((x, frame.y(held)), (x, frame.y(best[1])), "median"))
    parts += dots
    return drawing(frame.width, frame.height, parts, f"Optimization history of {objective}")


def front(ranking: Sequence[JobRow], across: str, up: str, shade: Mapping[int, str]) -> str:
    """Draw two objectives of the finished jobs against each other; those of the Pareto front are coloured.

    Args:
        ranking: the jobs.
        across, up: the names of the objectives.
        shade: the class that colours each job, by its number.
    """
    rows = [row for row in ranking if row.ranked]
    first = {num for num, place in front_of(ranking).items() if place == 1}
    axes = [objective_axis([replace(row, objective=row.value(name)) for row in rows], name) for name in (across, up)]
    frame = Frame(540, 320, inset=10)
    parts = frame.axes(axes[0].ticks, axes[1].ticks, across, up)
    for row, x, y in reversed(list(zip(rows, axes[0].places, axes[1].places, strict=True))):
        if x is not None and y is not None:
            tip = f"{row.label}: {', '.join(f'{name} {number(each, 6)}' for name, each in row.metrics.items())}"
            kind = shade[row.num] if row.num in first else "rest"
            parts.append(dot((frame.x(x), frame.y(y)), row, kind, tip))
    return drawing(frame.width, frame.height, parts, f"Pareto front of {across} and {up}")


def bars(shares: Mapping[str, float | None]) -> str:
    """Draw a bar in [0, 1] for each parameter, the longest first; parameters without a share come last."""
    order = sorted(shares, key=lambda name: -1.0 if shares[name] is None else shares[name] or 0.0, reverse=True)
    left, length, step = 230.0, 420.0, 26.0
    parts = []
    for index, name in enumerate(order):
        share, y = shares[name], index * step + 4
        parts.append(text(left - 8, y + 13, name, "end", longest=32))
        if share is None:
            parts.append(text(left + 4, y + 13, "too few jobs per value"))
            continue
        parts.append(f'<rect class="bar" x="{left}" y="{y}" width="{max(1.0, share * length):.1f}" height="17"/>')
        parts.append(text(left + share * length + 7, y + 13, f"{share:.2f}"))
    height = len(order) * step + 6
    parts.append(line((left, 0), (left, height), "axis"))
    return drawing(left + length + 60, height, parts, "Importance of the parameters")


def _tip(row: JobRow) -> str:
    return f"{row.label}: {number(row.objective, 6)}"
