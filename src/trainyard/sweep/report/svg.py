"""SVG building blocks. Colors, strokes and fonts are defined by class in the style sheet of the page (`page.css`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from trainyard.sweep.report.axes import Scale, Tick
from trainyard.sweep.report.items import Item

WIDE = 7.4  # pixels of a character, as it is on a phone, where the font is larger

Point = tuple[float, float]


def text(x: float, y: float, content: str, kind: str = "", longest: int = 40) -> str:
    """Return a text element with the class `kind`. A long text is truncated; its tooltip shows the complete text."""
    shown = content if len(content) <= longest else content[: longest - 1] + "…"
    tip = "" if shown is content else f"<title>{escape(content)}</title>"
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(shown)}{tip}</text>'


def line(start: Point, end: Point, kind: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def path(points: Sequence[Point], item: Item, kind: str, tip: str) -> str:
    """Return an item's line through `points`; a dot if there is only one point."""
    if len(points) == 1:
        return dot(points[0], item, kind, tip)
    title = f"<title>{escape(tip)}</title>"
    return f'<polyline class="mark {kind}" data-key="{item.key}" points="{_points(points)}">{title}</polyline>'


def band(points: Sequence[Point], item: Item, kind: str) -> str:
    """Return the area that `points` enclose."""
    return f'<polygon class="band {kind}" data-key="{item.key}" points="{_points(points)}"/>'


def dot(point: Point, item: Item, kind: str, tip: str, radius: float = 4) -> str:
    x, y = point
    title = f"<title>{escape(tip)}</title>"
    return (
        f'<circle class="mark {kind}" data-key="{item.key}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">{title}</circle>'
    )


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def drawing(width: float, height: float, parts: Iterable[str], label: str, axes: str = "") -> str:
    """Return the complete picture; it shrinks with the page but does not grow.

    Args:
        width, height: pixels.
        parts: the elements of the picture.
        label: its description, for readers who cannot see it.
        axes: the attributes from which the page computes the numbers under the pointer (`Frame.numbers`).
    """
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="width:{width:.0f}px" role="img"{axes} '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def spaced(ticks: Iterable[Tick], length: float, gap: float) -> list[Tick]:
    """Return the ticks that are at least `gap` pixels apart on an axis of `length` pixels."""
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
    bottom: float = 44
    inset: float = 6  # distance of the drawn data from the lines of the axes

    def x(self, place: float) -> float:
        return self.left + self.inset + place * (self.width - self.left - self.right - 2 * self.inset)

    def y(self, place: float) -> float:
        return self.height - self.bottom - self.inset - place * (self.height - self.top - self.bottom - 2 * self.inset)

    def numbers(self, across: Scale, up: Scale, name: str) -> str:
        """Return the attributes from which the page computes the numbers under the pointer.

        Args:
            across, up: the scales of the axes.
            name: the name of the horizontal axis.
        """
        ends = [(self.x(0), self.x(1), across), (self.y(0), self.y(1), up)]
        told = " ".join(f"{start:.1f} {end:.1f} {own.low!r} {own.high!r} {int(own.log)}" for start, end, own in ends)
        return f' data-axes="{told}" data-across="{escape(name)}"'

    def axes(self, x_ticks: Iterable[Tick], y_ticks: Iterable[Tick], x_label: str, y_label: str) -> list[str]:
        """Return grid, marks and names. Labels that would overlap are omitted; long ones are truncated."""
        x_ticks, y_ticks = list(x_ticks), list(y_ticks)
        floor, wall = self.height - self.bottom, self.width - self.right
        room = self.x(1) - self.x(0)
        longest = max((len(tick.label) for tick in x_ticks), default=1)
        fits = max(6, min(longest, int((room / max(1, len(x_ticks)) - 6) / WIDE)))
        parts = []
        for tick in spaced(y_ticks, self.y(0) - self.y(1), gap=16):
            y = self.y(tick.place)
            parts += [line((self.left, y), (wall, y), "grid"), text(self.left - 6, y + 4, tick.label, "end", longest=7)]
        for tick in spaced(x_ticks, room, gap=WIDE * min(fits, longest) + 5):
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
