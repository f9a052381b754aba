"""Charts of learning curves: a line for each job, or for repeats, their mean with a band."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from trainyard.sweep.report.axes import Scale, Tick, fences
from trainyard.sweep.report.items import Item
from trainyard.sweep.report.journals import POINTS, RUNG, Curve, JobNumbers, thinned
from trainyard.sweep.report.samples import Sample
from trainyard.sweep.report.svg import Frame, band, dot, drawing, line, path, spaced, text

ALL_POINTS = 24_000
"""Maximum number of points of all curves in a chart; with more curves, each has fewer points."""
LEAST_POINTS = 40
BANDS = 6
"""Number of the best configurations whose bands are always visible; those of others appear under the pointer."""


@dataclass
class Averaged:
    """Curve of repeats.

    Attributes:
        mean: the mean over the steps.
        spread: the standard deviation at each of its points; empty for a single job.
    """

    mean: Curve
    spread: list[float] = field(default_factory=list)


def averaged(curves: Sequence[Curve]) -> Averaged:
    """Return the mean of the curves of repeats, and its spread.

    Each step has the mean of the jobs with a point at this step, of which there must be two, so that the mean never
    shows a single job after others have ended.
    """
    own = [curve for curve in curves if curve]
    if len(own) < 2:
        return Averaged(own[0] if own else [])
    values: dict[int, list[float]] = defaultdict(list)
    for curve in own:
        for step, value in dict(curve).items():
            values[step].append(value)
    samples = [(step, Sample.of(values[step])) for step in sorted(values) if len(values[step]) > 1]
    if not samples:
        return Averaged(max(own, key=len))
    return Averaged(
        [(step, each.mean) for step, each in samples if each.mean is not None], [each.std or 0.0 for _, each in samples]
    )


def draw(items: Sequence[Item], found: Mapping[int, JobNumbers], metric: str, shade: Mapping[str, str]) -> str:
    """Draw the curves of one metric over the steps; an outlier's curve is clamped to the edge.

    Args:
        items: the jobs or configurations, best first; the best are drawn on top.
        found: the numbers of the jobs, by their number; a dot marks where one was pruned.
        metric: the metric's name.
        shade: the class that colors each item, by its key.

    Returns:
        The picture; an empty string if no job has a point.
    """
    curves = {
        item.key: averaged([found[num].curves.get(metric, []) for num in item.jobs if num in found]) for item in items
    }
    middles = {key: median(value for _, value in own.mean) for key, own in curves.items() if own.mean}
    if not middles:
        return ""
    most = max(LEAST_POINTS, min(POINTS, ALL_POINTS // len(middles)))
    low, high = fences(middles.values())
    near = [curves[key].mean for key, middle in middles.items() if low <= middle <= high]
    last = max(step for own in curves.values() for step, _ in own.mean)
    across, up = Scale(0, max(last, 1)), Scale.over(value for curve in near for _, value in curve)
    frame = Frame(540, 320)
    parts = frame.axes(across.ticks(), up.ticks(), "step", metric)
    parts += _rungs(found, across, frame)
    for index, item in reversed(list(enumerate(items))):
        own = curves[item.key]
        kind = shade[item.key]
        if own.spread and kind != "rest":
            ends = [(step, value, spread) for (step, value), spread in zip(own.mean, own.spread, strict=True)]
            kept = [ends[round(at * (len(ends) - 1) / (most - 1))] for at in range(most)] if len(ends) > most else ends
            upper = [(step, value + spread) for step, value, spread in kept]
            lower = [(step, value - spread) for step, value, spread in reversed(kept)]
            parts.append(band(_placed([*upper, *lower], across, up, frame), item, kind + " quiet" * (index >= BANDS)))
        points = _placed(thinned(own.mean, most), across, up, frame)
        if points:
            parts.append(path(points, item, kind, item.tip))
            if item.end:
                parts.append(dot(points[-1], item, kind, f"{item.label}: {item.end}"))
    axes = frame.numbers(across, up, "step")
    return drawing(frame.width, frame.height, parts, f"Learning curves of {metric}", axes)


def _placed(curve: Curve, across: Scale, up: Scale, frame: Frame) -> list[tuple[float, float]]:
    places = ((across.place(step), up.held(value)) for step, value in curve)
    return [(frame.x(x), frame.y(y)) for x, y in places if x is not None and y is not None]


def _rungs(found: Mapping[int, JobNumbers], across: Scale, frame: Frame) -> list[str]:
    marks = {step: at for own in found.values() for step, at in own.curves.get(RUNG, [])}
    ticks = [Tick(place, f"{at:g}") for step, at in sorted(marks.items()) if (place := across.place(step)) is not None]
    parts = []
    for tick in spaced(ticks, frame.x(1) - frame.x(0), gap=16):
        x = frame.x(tick.place)
        parts.append(line((x, frame.top + 12), (x, frame.height - frame.bottom), "rung"))
        parts.append(text(x, frame.top + 9, tick.label, "middle"))
    return parts
