"""Charts: optimization history, Pareto front, parallel coordinates, one parameter against the objective, importance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

from trainyard.sweep.goals import Direction
from trainyard.sweep.report.axes import Axis, Scale, Tick, drawable, of_parameter
from trainyard.sweep.report.items import Item, objective_axis
from trainyard.sweep.report.rows import number
from trainyard.sweep.report.svg import Frame, dot, drawing, line, path, spaced, text


def parallel(items: Sequence[Item], names: Sequence[str], objective: str, shade: Mapping[str, str]) -> str:
    """Draw parallel coordinates: an axis for each parameter and the objective, a line for each item with an objective.

    The lines of items that share a value are drawn side by side, the best on top.

    Args:
        items: the items, best first; the best are drawn on top.
        names: the parameters.
        objective: the objective's name.
        shade: the class that colors each item, by its key.
    """
    shown = [item for item in items if item.objective is not None]
    axes = [of_parameter(name, [item.overrides.get(name) for item in shown]) for name in names]
    axes.append(objective_axis(shown, objective))
    width, height, margin = max(1080.0, 130.0 * len(axes) + 60), 380.0, 90.0
    top, floor = 52.0, height - 26
    across = [margin + index * (width - 2 * margin) / (len(axes) - 1) for index in range(len(axes))]
    spreads = [*(_spread(axis, floor - top) for axis in axes[:-1]), 0.0]
    parts = []
    for index in reversed(range(len(shown))):
        aside = 0.5 - index / max(1, len(shown) - 1)  # the best on top
        points = [
            (x, floor - place * (floor - top) - aside * spread)
            for x, axis, spread in zip(across, axes, spreads, strict=True)
            if (place := axis.places[index]) is not None
        ]
        parts.append(path(points, shown[index], shade[shown[index].key], shown[index].tip))
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
    """Return whether on average at least two items share a value."""
    return 2 * len(set(axis.places)) <= len(axis.places)


def _spread(axis: Axis, length: float) -> float:
    """Return the pixels over which the lines of items that share a value are spread, so that all are visible."""
    if not _repeats(axis):
        return 0.0
    places = sorted({place for place in axis.places if place is not None})
    least = min((after - before for before, after in pairwise(places)), default=1.0)
    return min(26.0, 0.6 * least * length)


def scatter(items: Sequence[Item], name: str, objective: str, shade: Mapping[str, str]) -> str:
    """Draw one parameter against the objective, with the confidence intervals of means.

    If items share values, a bar marks the median of each value.
    """
    shown = [item for item in items if item.objective is not None]
    across = of_parameter(name, [item.overrides.get(name) for item in shown])
    up = objective_axis(shown, objective, margins=True)
    frame = Frame(350, 260, inset=16)
    parts = frame.axes(across.ticks, up.ticks, name, objective)
    parts += _medians(frame, across, up)
    for item, x, y in reversed(list(zip(shown, across.places, up.places, strict=True))):
        if x is not None and y is not None:
            aside = frame.x(x) + _aside(item, shown, x, across)
            parts += _interval(item, up.scale, frame, aside, shade[item.key])
            parts.append(dot((aside, frame.y(y)), item, shade[item.key], item.tip))
    return drawing(frame.width, frame.height, parts, f"{name} against {objective}")


def _aside(item: Item, shown: Sequence[Item], place: float, axis: Axis) -> float:
    """Return the pixels by which an item with an interval is moved aside from others of the same value."""
    if item.margin is None:
        return 0.0
    alike = [other.key for other, own in zip(shown, axis.places, strict=True) if own == place]
    return (alike.index(item.key) - (len(alike) - 1) / 2) * min(4.0, 24 / len(alike))


def _interval(item: Item, scale: Scale | None, frame: Frame, x: float, kind: str) -> list[str]:
    if item.margin is None or item.objective is None or scale is None or not drawable(item.margin):
        return []
    low, high = (scale.held(item.objective + sign * item.margin) for sign in (-1, 1))
    return [] if low is None or high is None else [line((x, frame.y(low)), (x, frame.y(high)), f"interval {kind}")]


def _medians(frame: Frame, across: Axis, up: Axis) -> list[str]:
    if not _repeats(across):
        return []
    columns: dict[float, list[float]] = defaultdict(list)
    for x, y in zip(across.places, up.places, strict=True):
        if x is not None and y is not None:
            columns[x].append(y)
    shared = ((frame.x(x), frame.y(median(values))) for x, values in columns.items() if len(values) > 1)
    return [line((x - 13, y), (x + 13, y), "median") for x, y in shared]


def history(items: Sequence[Item], objective: str, direction: Direction, shade: Mapping[str, str]) -> str:
    """Draw the objectives of the finished jobs in the order of their numbers, and a line of the best so far.

    Args:
        items: the jobs, of which at least one finished with an objective.
        objective: the objective's name.
        direction: whether a high or a low objective is better.
        shade: the class that colors each job, by its key.
    """
    shown = sorted((item for item in items if item.objective is not None), key=lambda item: item.jobs)
    up = objective_axis(shown, objective)
    last = max(len(shown) - 1, 1)
    ticks = [Tick(index / last, str(item.jobs[0])) for index, item in enumerate(shown)]
    frame = Frame(540, 320)
    parts = frame.axes(ticks, up.ticks, "job", objective)
    better = max if direction == "maximize" else min
    best: tuple[float, float] | None = None
    dots = []
    for index, (item, place) in enumerate(zip(shown, up.places, strict=True)):
        if place is None:
            continue
        x, y = frame.x(index / last), frame.y(place)
        dots.append(dot((x, y), item, shade[item.key], item.tip))
        if best is None:
            best = x, place
            continue
        before, held = best
        best = x, better(held, place)
        parts.append(line((before, frame.y(held)), (x, frame.y(held)), "median"))
        parts.append(line((x, frame.y(held)), (x, frame.y(best[1])), "median"))
    parts += dots
    return drawing(frame.width, frame.height, parts, f"Optimization history of {objective}")


def front(
    items: Mapping[str, Sequence[Item]], across: str, up: str, shade: Mapping[str, str], first: frozenset[str]
) -> str:
    """Draw two objectives of the finished jobs against each other; jobs of the Pareto front are colored.

    Args:
        items: the jobs with each objective, in the same order.
        across, up: the names of the objectives.
        shade: the class that colors each job, by its key.
        first: the keys of the jobs of the Pareto front.
    """
    axes = [objective_axis(items[name], name) for name in (across, up)]
    frame = Frame(540, 320, inset=10)
    parts = frame.axes(axes[0].ticks, axes[1].ticks, across, up)
    places = zip(items[across], items[up], axes[0].places, axes[1].places, strict=True)
    for one, other, x, y in reversed(list(places)):
        if x is not None and y is not None:
            tip = f"{one.label}: {across} {number(one.objective, 6)}, {up} {number(other.objective, 6)}"
            kind = shade[one.key] if one.key in first else "rest"
            parts.append(dot((frame.x(x), frame.y(y)), one, kind, tip))
    return drawing(frame.width, frame.height, parts, f"Pareto front of {across} and {up}")


def bars(shares: Mapping[str, float | None], why: str) -> str:
    """Draw a bar in [0, 1] for each parameter, the longest first; parameters without a fraction come last.

    Args:
        shares: the fraction of each parameter.
        why: why a parameter has no fraction.
    """
    order = sorted(shares, key=lambda name: -1.0 if shares[name] is None else shares[name] or 0.0, reverse=True)
    left, length, step = 190.0, 300.0, 26.0
    parts = []
    for index, name in enumerate(order):
        share, y = shares[name], index * step + 4
        parts.append(text(left - 8, y + 13, name, "end", longest=24))
        if share is None:
            parts.append(text(left + 4, y + 13, f"unknown: {why}"))
            continue
        parts.append(f'<rect class="bar" x="{left}" y="{y}" width="{max(1.0, share * length):.1f}" height="17"/>')
        parts.append(text(left + share * length + 7, y + 13, f"{share:.2f}"))
    height = len(order) * step + 6
    parts.append(line((left, 0), (left, height), "axis"))
    return drawing(left + length + 50, height, parts, "Importance of the parameters")
