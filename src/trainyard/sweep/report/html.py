"""HTML report of a sweep: one page that needs no network and opens from a file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from urllib.parse import quote

from trainyard.sweep.goals import Direction, Goals
from trainyard.sweep.report import charts, curves
from trainyard.sweep.report.axes import FAR
from trainyard.sweep.report.importance import METHOD, METHOD_OF_SEARCH, importance, importance_in_search
from trainyard.sweep.report.page import document
from trainyard.sweep.report.ranking import places, rank
from trainyard.sweep.report.repeats import configurations, repeated
from trainyard.sweep.report.rows import (
    JobRow,
    duration,
    front_of,
    keys,
    measures,
    number,
    varying,
)
from trainyard.sweep.report.svg import COLOURED, CROWD, SHADES, far_off, shades

_TRAIN_LOSS = "train/loss"


def write(
    rows: Sequence[JobRow],
    directory: str | Path,
    *,
    title: str,
    objective: str | None,
    direction: Direction,
    searched: bool = False,
    goals: Goals | None = None,
) -> Path:
    """Write `report.html`.

    It shows the ranking, of several objectives the Pareto front, of a search the optimization history, learning curves,
    parallel coordinates, each parameter against the objective, and importance.

    Args:
        rows: the jobs, in any order. Their curves are read from `metrics.jsonl` in their directories.
        directory: the output directory; it must exist. Links to the jobs' directories are relative to it.
        title: the page's heading.
        objective: the name of the metric that ranks; None if the objective is not a metric.
        direction: whether a high or a low objective is better.
        searched: whether the values of later jobs were chosen by the objectives of earlier ones.
        goals: what a search compares the jobs by, where that is more than the objective of each.

    Returns:
        The file.
    """
    ranking = rank(rows, direction)
    names = varying(ranking)
    shown = objective or "objective"
    shade = shades(ranking, direction)
    objectives: dict[str, Direction] = {shown: direction}
    if goals is not None:
        objectives = dict(zip(goals.names, goals.directions, strict=True))
    sections = [
        _summary(ranking, title, objectives, goals),
        *_means(rows, shown, direction),
        _ranking(ranking, shown, Path(directory)),
        *_front(ranking, objectives, shade),
        *(_history(ranking, objectives, shade) if searched else ()),
        _curves(ranking, objective, shade),
        *_parameters(ranking, names, objectives, shade, searched),
    ]
    file = Path(directory, "report.html")
    file.write_text(document(title, "\n".join(sections)), encoding="utf-8", errors="replace")
    return file


def _summary(ranking: Sequence[JobRow], title: str, objectives: Mapping[str, Direction], goals: Goals | None) -> str:
    states = Counter(row.state for row in ranking)
    jobs = f"{len(ranking)} ({', '.join(f'{count} {state}' for state, count in states.most_common())})"
    seconds = [row.seconds for row in ranking if row.seconds is not None]
    done = [row.seconds for row in ranking if row.seconds is not None and row.state == "done"]
    best = next((row for row in ranking if row.ranked), None)
    winner = "no finished job has an objective" if best is None else f"{best.label}: {number(best.objective)}"
    front = ", ".join(f"#{num}" for num, place in front_of(ranking).items() if place == 1)
    better = {"maximize": "higher is better", "minimize": "lower is better"}
    named = ", ".join(f"{name} ({better[direction]})" for name, direction in objectives.items())
    bounds = ", ".join(map(str, () if goals is None else goals.constraints))
    facts = {
        "Jobs": jobs if ranking else "0",
        "Objective" if len(objectives) == 1 else "Objectives": named,
        **({"Constraints": bounds} if bounds else {}),
        "Pareto front" if front else "Best job": front or winner,
        "Time of all jobs": duration(sum(seconds) if seconds else None),
        "Mean time of a finished job": duration(sum(done) / len(done) if done else None),
    }
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    far = far_off(ranking)
    note = (
        f'\n<p class="note">Of the finished jobs, {far} have an objective so far from the others (more than {FAR} '
        "interquartile ranges) that the pictures show them at the edge.</p>"
    )
    return f"<h1>{escape(title)}</h1>\n<dl>{items}</dl>{note if far else ''}"


def _means(rows: Sequence[JobRow], objective: str, direction: Direction) -> Iterator[str]:
    found = configurations(rows, direction)
    if not found:
        return
    names = [key for key in keys(rows) if len({each.overrides.get(key) for each in found}) > 1]
    numbers = [f"mean {objective}", "95 %", "std", "n"]
    heads = [f"<th>{escape(name)}</th>" for name in names]
    heads += [f'<th class="number">{escape(name)}</th>' for name in numbers]
    lines = []
    for each in found:
        cells = [_cell(each.overrides.get(name, ""), escape(each.overrides.get(name, "-"))) for name in names]
        for value, sign in ((each.mean, ""), (each.margin, "±"), (each.std, "")):
            shown = "-" if value is None else f"{sign}{number(value)}"
            cells.append(_cell("" if value is None else repr(value), shown, numeric=True))
        cells.append(_cell(str(each.n), each.count))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    yield f"<h2>Means over {escape(', '.join(repeated(rows)))}</h2>"
    yield (
        f'<div class="scroll ranking"><table><thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>"
    )


def _ranking(ranking: Sequence[JobRow], objective: str, directory: Path) -> str:
    names = varying(ranking) or keys(ranking)
    measured = measures(ranking, objective)
    first = "front" if front_of(ranking) else "rank"
    numbers = {first, "job", *measured, "time"}
    columns = [first, "job", *names, *measured, "time", "state"]
    heads = (f"<th{' class=number' if name in numbers else ''}>{escape(name)}</th>" for name in columns)
    body = "\n".join(
        _line(row, place, names, measured, directory) for row, place in zip(ranking, places(ranking), strict=True)
    )
    return (
        "<h2>Ranking</h2>\n"
        '<p class="note">Click a heading to sort. The number of a job links to its directory.</p>\n'
        f'<div class="scroll ranking"><table><thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _line(row: JobRow, place: int | None, names: Sequence[str], measured: Sequence[str], directory: Path) -> str:
    folder = Path(os.path.relpath(row.directory, directory)).as_posix()
    # "./" because a name such as `a:b` would be read as a scheme.
    target = quote(f"./{folder}/", safe="/=,", errors="replace")
    link = f'<a href="{escape(target)}" title="{escape(folder)}">{row.num}</a>'
    error = f'<div class="error">{escape(row.error)}</div>' if row.error else ""
    cells = [
        _cell("" if place is None else str(place), "-" if place is None else str(place), numeric=True),
        _cell(str(row.num), link, numeric=True),
        *(_cell(row.overrides.get(name, ""), escape(row.overrides.get(name, "-"))) for name in names),
        *(_value(row.value(name)) for name in measured),
        _cell("" if row.seconds is None else repr(row.seconds), duration(row.seconds), numeric=True),
        _cell(row.outcome, row.outcome + error),
    ]
    kind = "" if row.outcome == "done" else ' class="unfinished"'
    return f'<tr{kind} data-job="{row.num}">{"".join(cells)}</tr>'


def _value(value: float | None) -> str:
    """Return the cell of a number, which sorts last if it is none or NaN."""
    return _cell("" if value is None or value != value else repr(value), number(value), numeric=True)


def _cell(value: str, content: str, *, numeric: bool = False) -> str:
    """Return a cell that sorts by `value` and shows `content`, which is HTML."""
    return f'<td{" class=number" if numeric else ""} data-value="{escape(value)}">{content}</td>'


def _front(ranking: Sequence[JobRow], objectives: Mapping[str, Direction], shade: dict[int, str]) -> Iterator[str]:
    if front_of(ranking):
        yield "<h2>Pareto front</h2>"
        yield '<p class="note">Coloured: no other job is better in one objective without being worse in another.</p>'
        drawn = "".join(charts.front(ranking, across, up, shade) for across, up in combinations(objectives, 2))
        yield f'<div class="charts">{drawn}</div>'


def _history(ranking: Sequence[JobRow], objectives: Mapping[str, Direction], shade: dict[int, str]) -> Iterator[str]:
    if any(row.ranked for row in ranking):
        yield "<h2>Optimization history</h2>"
        yield '<p class="note">The finished jobs in order. The line shows the best value so far.</p>'
        drawn = [charts.history(_by(ranking, name), name, better, shade) for name, better in objectives.items()]
        yield f'<div class="charts">{"".join(drawn)}</div>'


def _by(ranking: Sequence[JobRow], name: str) -> Sequence[JobRow]:
    """Return the jobs with one of their numbers as the objective."""
    return [replace(row, objective=row.value(name)) if row.metrics else row for row in ranking]


def _curves(ranking: Sequence[JobRow], objective: str | None, shade: dict[int, str]) -> str:
    metrics = list(dict.fromkeys(name for name in (objective, _TRAIN_LOSS) if name is not None))
    found = {row.num: curves.read_curves(row.directory, [*metrics, curves.RUNG]) for row in ranking}
    rungs = {num: own[curves.RUNG] for num, own in found.items()}
    drawn = [
        curves.draw(ranking, {num: own[metric] for num, own in found.items()}, metric, shade, rungs)
        for metric in metrics
    ]
    legend = "".join(f'<i class="c{index}"></i>' for index in range(SHADES))
    crowd = f"The best {COLOURED} of {len(ranking)} jobs are coloured" if len(ranking) > CROWD else "Coloured"
    note = f'{crowd} by the objective: worst <span class="legend">{legend}</span> best. Grey: all others.'
    if any(rungs.values()):
        note += " Dotted: rungs, at which jobs report to the search. A dot: the job was pruned there."
    if not any(drawn):
        return '<h2>Learning curves</h2>\n<p class="note">No job has recorded one.</p>'
    return f'<h2>Learning curves</h2>\n<p class="note">{note}</p>\n<div class="charts">{"".join(drawn)}</div>'


def _parameters(
    ranking: Sequence[JobRow],
    names: Sequence[str],
    objectives: Mapping[str, Direction],
    shade: dict[int, str],
    searched: bool,
) -> Iterator[str]:
    if not names or sum(row.ranked for row in ranking) < 2:
        yield '<h2>Parameters</h2>\n<p class="note">Nothing to compare: '
        yield "no parameter varies.</p>" if not names else "fewer than two jobs finished with an objective.</p>"
        return
    yield '<h2>Parallel coordinates</h2>\n<p class="note">One line for each finished job.</p>'
    first = next(iter(objectives))
    yield f'<div class="scroll wide">{charts.parallel(ranking, names, first, shade)}</div>'
    for objective in objectives:
        rows = _by(ranking, objective)
        yield f'<h2>Parameters against {escape(objective)}</h2>\n<p class="note">Bars mark the median per value.</p>'
        yield f'<div class="charts">{"".join(charts.scatter(rows, name, objective, shade) for name in names)}</div>'
    searched = searched and find_spec("optuna") is not None
    yield f'<h2>Importance</h2>\n<p class="note">{escape(METHOD_OF_SEARCH if searched else METHOD)}</p>'
    for objective, direction in objectives.items():
        rows = _by(ranking, objective)
        if len(objectives) > 1:
            yield f"<p>{escape(objective)}</p>"
        own = {name: importance(rows, name) for name in names}
        yield charts.bars(importance_in_search(rows, names, direction) if searched else own)
