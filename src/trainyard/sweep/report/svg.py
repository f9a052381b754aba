"""SVG building blocks. Colours, strokes and fonts come from the page's style sheet (`page.py`) by class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from trainyard.sweep.goals import Direction
from trainyard.sweep.report.axes import Axis, Scale, Tick, drawable, fences
from trainyard.sweep.report.rows import JobRow

SHADES = 12  # classes c0 (worst) to c11 (best)
CROWD = 64  # if there are more jobs than this, only the best are coloured
COLOURED = 32

Point = tuple[float, float]


def shades(ranking: Sequence[JobRow], direction: Direction) -> dict[int, str]:
    """Return the class that colours each job, by its number: the place of its objective between worst and best."""
    if len(ranking) > CROWD:
        return {row.num: "rest" for row in ranking} | shades(ranking[:COLOURED], direction)
    places = objective_axis(ranking).places
    if direction == "minimize":
        places = [None if place is None else 1 - place for place in places]
    kinds = ("none" if place is None else f"c{min(int(place * SHADES), SHADES - 1)}" for place in places)
    return {row.num: kind for row, kind in zip(ranking, kinds, strict=True)}


def objective_axis(rows: Sequence[JobRow], label: str = "") -> Axis:
    """Return the axis of finished jobs' objectives, with round numbers; outliers are drawn at its end."""
    values = [row.objective if row.ranked else None for row in rows]
    low, high = fences(values)
    scale = Scale.over(value for value in values if value is not None and low <= value <= high)
    return Axis(label, [scale.held(value) for value in values], scale.ticks())


def far_off(rows: Sequence[JobRow]) -> int:
    """Return the number of finished jobs that are outliers, drawn at the end of the objective's axis."""
    values = [row.objective for row in rows if row.ranked and drawable(row.objective)]
    low, high = fences(values)
    return sum(value is not None and not low <= value <= high for value in values)


def text(x: float, y: float, content: str, kind: str = "", longest: int = 40) -> str:
    """Return a text, anchored by its class `kind`. A long one is cut, and its tooltip shows all of it."""
    shown = content if len(content) <= longest else content[: longest - 1] + "…"
    tip = "" if shown is content else f"<title>{escape(content)}</title>"
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(shown)}{tip}</text>'


def line(start: Point, end: Point, kind: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def path(points: Sequence[Point], row: JobRow, kind: str, tip: str) -> str:
    """Return a job's line through `points`; a dot if there is one point only."""
    if len(points) == 1:
        return dot(points[0], row, kind, tip)
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    title = f"<title>{escape(tip)}</title>"
    return f'<polyline class="job {kind}" data-job="{row.num}" points="{drawn}">{title}</polyline>'


def dot(point: Point, row: JobRow, kind: str, tip: str) -> str:
    x, y = point
    title = f"<title>{escape(tip)}</title>"
    return f'<circle class="job {kind}" data-job="{row.num}" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>'


def drawing(width: float, height: float, parts: Iterable[str], label: str) -> str:
    """Return the whole picture; it shrinks with the page but does not grow."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="width:{width:.0f}px" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def spaced(ticks: Iterable[Tick], length: float, gap: float) -> list[Tick]:
    """Return the ticks that lie at least `gap` pixels apart on an axis of `length` pixels."""
    kept: list[Tick] = []
    for tick in sorted(ticks, key=lambda tick: tick.place):
        if not kept or (tick.place - kept[-1].place) * length >= gap:
            kept.append(tick)
    return kept


@dataclass(frozen=True)
class Frame:
    """Pair of axes and the area between them, in pixels."""

    width: float
    height: float
    left: float = 64
    right: float = 14
    top: float = 10
    bottom: float = 42
    inset: float = 6  # distance of the drawn data from the lines of the axes

    def x(self, place: float) -> float:
        return self.left + self.inset + place * (self.width - self.left - self.right - 2 * self.inset)

    def y(self, place: float) -> float:
        return self.height - self.bottom - self.inset - place * (self.height - self.top - self.bottom - 2 * self.inset)

    def axes(self, x_ticks: Iterable[Tick], y_ticks: Iterable[Tick], x_label: str, y_label: str) -> list[str]:
        """Return grid, marks and names. Labels that would overlap are left out; long ones are cut."""
        x_ticks, y_ticks = list(x_ticks), list(y_ticks)
        floor, wall = self.height - self.bottom, self.width - self.right
        room = self.x(1) - self.x(0)
        longest = max((len(tick.label) for tick in x_ticks), default=1)
        fits = max(6, min(longest, int((room / max(1, len(x_ticks)) - 6) / 6.2)))
        parts = []
        for tick in spaced(y_ticks, self.y(0) - self.y(1), gap=14):
            y = self.y(tick.place)
            parts += [line((self.left, y), (wall, y), "grid"), text(self.left - 6, y + 4, tick.label, "end", longest=9)]
        for tick in spaced(x_ticks, room, gap=6.2 * min(fits, longest) + 5):
            x = self.x(tick.place)
            parts += [line((x, floor), (x, floor + 4), "axis"), text(x, floor + 17, tick.label, "middle", longest=fits)]
        parts += [
            line((self.left, floor), (wall, floor), "axis"),
            line((self.left, self.top), (self.left, floor), "axis"),
        ]
        parts.append(text((self.left + wall) / 2, self.height - 6, x_label, "name middle"))
        middle = (self.top + floor) / 2
        parts.append(f'<g transform="translate(13 {middle:.0f}) rotate(-90)">{text(0, 0, y_label, "name middle")}</g>')
        return parts
