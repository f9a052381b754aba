"""`scripts/bench/plot.py`: the README's picture shows the figures of docs/benchmarks.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"
GOALS: list[dict[str, Any]] = json.loads((ROOT / "docs/benchmarks.json").read_text(encoding="utf-8"))
PICTURES = {theme: ROOT / f"docs/images/benchmarks-{theme}.svg" for theme in ("light", "dark")}
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))


@pytest.mark.parametrize("theme", PICTURES)
def test_the_pictures_are_those_of_the_figures(theme: str) -> None:
    """They are drawn anew by `python scripts/bench/plot.py`."""
    from plot import THEMES, svg

    assert PICTURES[theme].read_text(encoding="utf-8") == svg(GOALS, THEMES[theme])


@pytest.mark.parametrize("theme", PICTURES)
def test_each_bar_has_the_number_and_the_length_of_its_figure(theme: str) -> None:
    from plot import HEADLINES, LEFT, THEMES

    root = ElementTree.parse(PICTURES[theme]).getroot()
    texts = [(float(each.attrib["y"]), float(each.attrib["x"]), str(each.text)) for each in root.iter(f"{SVG}text")]
    line = next(root.iter(f"{SVG}line"))
    one = float(line.attrib["x1"]) - LEFT
    bars = [each for each in root.iter(f"{SVG}rect") if each.attrib["fill"] == THEMES[theme].bar]
    names = {name: tool for tools in HEADLINES.values() for name, tool in tools.items()}
    figures = {goal["name"]: goal for goal in GOALS}
    shown = [name for name in names if name in figures]
    assert len(bars) == len(shown)
    for bar, name in zip(bars, shown, strict=True):
        middle = float(bar.attrib["y"]) + float(bar.attrib["height"]) / 2
        row = [words for y, _, words in sorted(texts) if abs(y - middle) < 10]
        assert row == [names[name], f"{figures[name]['ratio']:.2f}"]
        assert float(bar.attrib["width"]) / one == pytest.approx(figures[name]["ratio"], abs=0.002)


def test_figures_that_are_missing_are_left_out() -> None:
    from plot import HEADLINES, THEMES, svg

    (group, tools), *_ = HEADLINES.items()
    name, *others = tools
    text = svg([{"name": name, "ratio": 0.5, "low": 0.4, "high": 1.6, "goal": 0.48}], THEMES["light"])
    ElementTree.fromstring(text)
    assert f">{group}</text>" in text
    assert f">{tools[name]}</text>" in text
    assert not any(f">{tools[other]}</text>" in text for other in others)
    assert not any(f">{other}</text>" in text for other in HEADLINES if other != group)
    assert re.findall(r">(\d\.\d\d)</text>", text) == ["0.50"]


def test_headlines_are_names_of_figures() -> None:
    """Those that were measured have a goal on the page; these have been added and not measured since."""
    from plot import HEADLINES

    names = {name for tools in HEADLINES.values() for name in tools}
    missing = names - {goal["name"] for goal in GOALS}
    assert missing <= {
        "A sweep of 256 jobs: trainyard / joblib, by hand",
        "A population of 16, 10 epochs: trainyard / Ray Tune",
    }


def test_the_figures_are_those_of_the_page() -> None:
    """Each figure with a goal has a row in its table of docs/benchmarks.md with the same numbers."""
    from report import number

    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    for goal in GOALS:
        label = goal["name"].split(": ")[-1]
        ratio, low, high = (number(goal[key]) for key in ("ratio", "low", "high"))
        assert f"| {label} | {ratio} | {low} to {high} | ≤ {goal['goal']:.3g} |" in page, goal["name"]


def test_the_readme_shows_both_pictures() -> None:
    assert '<source media="(prefers-color-scheme: dark)" srcset="docs/images/benchmarks-dark.svg">' in README
    assert '<img src="docs/images/benchmarks-light.svg"' in README
