"""Picture of the main ratios: `docs/images/benchmarks-light.svg` and `-dark.svg`, from `docs/benchmarks.json`.

    python scripts/bench/plot.py

`run.py` also draws the picture after it has written the page. A ratio that the file does not contain is not drawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from environment import ROOT

GOALS = ROOT / "docs" / "benchmarks.json"
IMAGES = ROOT / "docs" / "images"

STEP = "Step of a small MLP: trainyard, resident data / "
LOADER = "Step of a small MLP: trainyard, the same DataLoader / "
IMAGE = "Images in files, 2 workers: trainyard / "
HEADLINES: Mapping[str, Mapping[str, str]] = {
    "Training step of a small MLP": {
        f"{STEP}plain PyTorch": "plain PyTorch",
        f"{STEP}plain PyTorch, fused Adam": "plain PyTorch, fused Adam",
        f"{STEP}MMEngine": "MMEngine",
        f"{STEP}Lightning": "Lightning",
    },
    "The same step over a DataLoader": {
        f"{LOADER}plain PyTorch": "plain PyTorch",
        f"{LOADER}plain PyTorch, fused Adam": "plain PyTorch, fused Adam",
    },
    "Start-up to the first step": {"Start-up to the first step: trainyard / bare script": "script that imports torch"},
    "Training on JPEG files": {
        f"{IMAGE}DataLoader, transforms on tensors": "torchvision",
        f"{IMAGE}timm": "timm",
    },
    "Sweeps": {
        "A sweep of 32 jobs: trainyard / joblib, by hand": "joblib launcher, 32 runs",
        "A sweep of 256 jobs: trainyard / joblib, by hand": "joblib launcher, 256 runs",
        "A population of 16, 10 epochs: trainyard / Ray Tune": "Ray Tune, population of 16",
    },
}
"""The names of the ratios in the file by groups, each with the name of the other tool in the picture."""


@dataclass(frozen=True)
class Theme:
    """Colours of one picture."""

    background: str
    text: str
    faint: str
    track: str
    bar: str


THEMES = {
    "light": Theme("#ffffff", "#1f2328", "#59636e", "#eaeef2", "#2f6fdb"),
    "dark": Theme("#0d1117", "#f0f6fc", "#9198a1", "#21262d", "#4d8dff"),
}

WIDTH, MARGIN = 440, 16
LEFT, RIGHT = 228, WIDTH - 66
"""Where the bars begin, and where the longest range ends."""
ROW, GROUP, BAR = 30, 34, 16
TOP, BOTTOM = 84, 16
SIZE = 15
"""Of the text: a phone shows the picture at four fifths of its width."""


def selected(goals: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Return the measured headlines by groups and names of the other tools; empty groups are left out."""
    known = {goal["name"]: goal for goal in goals}
    groups = {
        group: {tool: known[name] for name, tool in names.items() if name in known}
        for group, names in HEADLINES.items()
    }
    return {group: rows for group, rows in groups.items() if rows}


def svg(goals: Sequence[Mapping[str, Any]], theme: Theme) -> str:
    """Return the picture: a bar for each headline ratio, its range, and a line at 1."""
    groups = selected(goals)
    ratios = [goal for rows in groups.values() for goal in rows.values()]
    most = max([1.0, *(goal["high"] for goal in ratios)])
    height = TOP + GROUP * len(groups) + ROW * len(ratios) + BOTTOM
    told = "; ".join(f"{tool} {ratio(goal)}" for rows in groups.values() for tool, goal in rows.items())
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="{SIZE}" '
        f'role="img" aria-label={quoteattr(f"Time of Trainyard / time of the other tool: {told}")}>',
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{theme.background}"/>',
        text(MARGIN, 28, "Time of Trainyard / time of the other tool", theme.text, size=17, weight=600),
        text(MARGIN, 50, "A shorter bar is faster. Thin lines: range of the rounds.", theme.faint),
    ]
    lines = [*head, *_rows(groups, theme, most, height), "</svg>"]
    return "\n".join(lines) + "\n"


def _rows(
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]], theme: Theme, most: float, height: int
) -> Iterator[str]:
    def at(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * value / most

    one = at(1.0)
    yield text(one, TOP - 10, "1", theme.faint, anchor="middle")
    y = TOP
    for group, rows in groups.items():
        yield text(MARGIN, y + 21, group, theme.text, weight=600)
        y += GROUP
        for tool, goal in rows.items():
            middle = y + ROW / 2
            yield text(MARGIN + 8, middle + 5, tool, theme.text)
            yield rectangle(LEFT, middle - BAR / 2, one - LEFT, BAR, theme.track)
            yield rectangle(LEFT, middle - BAR / 2, at(goal["ratio"]) - LEFT, BAR, theme.bar)
            yield rectangle(at(goal["low"]), middle - 1, at(goal["high"]) - at(goal["low"]), 2, theme.text)
            for end in ("low", "high"):
                yield rectangle(at(goal[end]) - 1, middle - 5, 2, 10, theme.text)
            yield text(WIDTH - MARGIN, middle + 5, ratio(goal), theme.text, anchor="end", weight=600)
            y += ROW
    ends = f'x1="{one:.1f}" y1="{TOP - 4}" x2="{one:.1f}" y2="{height - BOTTOM + 4}"'
    yield f'<line {ends} stroke="{theme.faint}" stroke-dasharray="4 3"/>'


def ratio(goal: Mapping[str, Any]) -> str:
    """Return the number that the picture shows."""
    return f"{goal['ratio']:.2f}"


def text(
    x: float, y: float, words: str, fill: str, *, size: int = SIZE, weight: int = 400, anchor: str = "start"
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{fill}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def rectangle(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def write(goals: Path = GOALS, folder: Path = IMAGES) -> Iterable[Path]:
    """Write the picture of each theme, and return the files."""
    found = json.loads(goals.read_text(encoding="utf-8"))
    files = []
    for name, theme in THEMES.items():
        files.append(folder / f"benchmarks-{name}.svg")
        files[-1].write_text(svg(found, theme), encoding="utf-8")
    return files


if __name__ == "__main__":
    for file in write():
        print(file.relative_to(ROOT))
