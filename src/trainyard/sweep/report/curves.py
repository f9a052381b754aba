"""Learning curves, read from the journals of the jobs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from trainyard.sweep.report.axes import Scale, Tick, drawable, fences
from trainyard.sweep.report.rows import JobRow
from trainyard.sweep.report.svg import Frame, dot, drawing, line, path, spaced, text
from trainyard.track import read

RUNG = "rung"
"""Series of the rungs at which a job has reported, in epochs or iterations, over the steps."""
POINTS = 300  # a curve is drawn about 450 pixels wide

Curve = list[tuple[int, float]]


def read_curves(directory: Path, names: Iterable[str]) -> dict[str, Curve]:
    """Return the values of some metrics over the steps, from a job's journal.

    Args:
        directory: the job's directory. If it is missing, or its journal cannot be read, the curves are empty.
        names: the metrics; `RUNG` is one, too.

    Returns:
        For each name its points (step, value): at most 300, evenly spread, including the last one.
    """
    curves: dict[str, Curve] = {name: [] for name in names}
    step = 0
    with contextlib.suppress(OSError):
        for record, _ in read(directory / "metrics.jsonl"):
            if record["kind"] == "metrics":
                step = record["step"]
                for name in curves.keys() & record["values"].keys():
                    curves[name].append((step, record["values"][name]))
            elif record["kind"] == "tags" and RUNG in curves and RUNG in record["tags"]:  # after the metrics there
                curves[RUNG].append((step, float(record["tags"][RUNG])))
    return {name: _thinned([point for point in curve if drawable(point[1])]) for name, curve in curves.items()}


def _thinned(curve: Curve) -> Curve:
    if len(curve) <= POINTS:
        return curve
    return [curve[round(index * (len(curve) - 1) / (POINTS - 1))] for index in range(POINTS)]


def draw(
    ranking: Sequence[JobRow],
    curves: Mapping[int, Curve],
    metric: str,
    shade: Mapping[int, str],
    rungs: Mapping[int, Curve] | None = None,
) -> str:
    """Draw the curves of one metric over the steps; an outlier's curve is clamped to the edge.

    Args:
        ranking: the jobs, best first; the best are drawn on top.
        curves: the points of each job, by its number.
        metric: the metric's name.
        shade: the class that colours each job, by its number.
        rungs: the rungs that each job has reached, as `RUNG` of `read_curves`; a dot marks where it was pruned.

    Returns:
        The picture; an empty string if no job has a point.
    """
    middles = {num: median(value for _, value in curve) for num, curve in curves.items() if curve}
    if not middles:
        return ""
    low, high = fences(middles.values())
    near = [curves[num] for num, middle in middles.items() if low <= middle <= high]
    last = max(step for curve in curves.values() for step, _ in curve)
    across, up = Scale(0, max(last, 1)), Scale.over(value for curve in near for _, value in curve)
    frame = Frame(540, 320)
    parts = frame.axes(across.ticks(), up.ticks(), "step", metric)
    marks = {step: at for reached in (rungs or {}).values() for step, at in reached}
    ticks = [Tick(place, f"{at:g}") for step, at in sorted(marks.items()) if (place := across.place(step)) is not None]
    for tick in spaced(ticks, frame.x(1) - frame.x(0), gap=14):
        x = frame.x(tick.place)
        parts.append(line((x, frame.top + 12), (x, frame.height - frame.bottom), "rung"))
        parts.append(text(x, frame.top + 9, tick.label, "middle"))
    for row in reversed(ranking):
        placed = [(across.place(step), up.held(value)) for step, value in curves.get(row.num, [])]
        drawn = [(frame.x(x), frame.y(y)) for x, y in placed if x is not None and y is not None]
        if drawn:
            parts.append(path(drawn, row, shade[row.num], row.label))
            if row.state == "pruned":
                parts.append(dot(drawn[-1], row, shade[row.num], f"{row.label}: {row.error or 'pruned'}"))
    return drawing(frame.width, frame.height, parts, f"Learning curves of {metric}")
