"""Tables of the page: configurations, jobs, and the jobs that failed."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from trainyard.sweep.goals import Direction
from trainyard.sweep.report.journals import JobNumbers, column, metric_names, objectives
from trainyard.sweep.report.ranking import configuration_places, places
from trainyard.sweep.report.repeats import Configuration, compared, repeated
from trainyard.sweep.report.rows import (
    JobRow,
    duration,
    front_of,
    in_order,
    keys,
    measures,
    number,
    p_value,
    shortened,
    varying,
    with_spread,
)
from trainyard.sweep.report.samples import Difference, Sample

METRICS = 10
"""Maximum number of metrics that a table shows in addition to the objective; results.csv contains all."""
_UNFINISHED = ("failed", "timeout", "lost", "interrupted")


def of_configurations(
    found: Sequence[Configuration],
    names: Sequence[str],
    rows: Sequence[JobRow],
    objective: str,
    numbers: Mapping[int, JobNumbers],
) -> Iterator[str]:
    """Yield the section of the configurations: means with their intervals, and differences from the best one.

    Args:
        found: the configurations, best first.
        names: the parameters.
        rows: all jobs.
        objective: the objective's name.
        numbers: the numbers of the jobs, by their number.
    """
    tests = [name for name in _metrics(numbers, objective) if name.startswith("test/")]
    own = objectives(rows)
    apart = compared(found, own) if len(found) > 1 and found[0].n else []
    heads = [_head("rank", numeric=True), *map(_head, names)]
    heads += [_head(name, numeric=True) for name in (f"mean {objective}", "95 %", "std", "n", *tests)]
    heads += [_head(name, numeric=True) for name in ("difference", "p (Holm)")] if apart else []
    orders = _orders(rows, names)
    columns = {name: column(numbers, name) for name in tests}
    lines = []
    for index, (each, place) in enumerate(zip(found, configuration_places(found), strict=True)):
        mean, std = with_spread(each.mean, each.std)
        cells = [_place(place), *(_override(each.overrides.get(name), orders[name]) for name in names)]
        cells += [
            _cell(_sortable(each.mean), mean, numeric=True),
            _cell(
                _sortable(each.margin), f"± {number(each.margin, 2)}" if each.margin is not None else "-", numeric=True
            ),
            _cell(_sortable(each.std), std or "-", numeric=True),
            _cell(str(each.n), each.count, numeric=True),
        ]
        cells += [_mean(each.sample_of(columns[name])) for name in tests]
        cells += _difference(apart[index]) if apart else []
        kind = "" if each.is_whole else ' class="unfinished"'
        lines.append(f'<tr{kind} data-key="c{each.rows[0].num}">{"".join(cells)}</tr>')
    yield f"<h2>Configurations: means over {escape(', '.join(repeated(found)))}</h2>"
    yield f'<p class="note">{_configurations_note(apart, bool(tests), found)}</p>'
    yield _table(heads, lines)


def _configurations_note(apart: Sequence[Difference | None], tests: bool, found: Sequence[Configuration]) -> str:
    note = (
        "The 95 % confidence interval of the mean uses Student's t distribution. Test metrics are mean ± standard "
        "deviation. "
        if tests
        else "The 95 % confidence interval of the mean uses Student's t distribution. "
    )
    comparisons = sum(each is not None and each.p is not None for each in apart)
    if comparisons:
        same = " and ".join(key.rpartition(".")[2] for key in repeated(found))
        note += (
            f"The difference from the best configuration is the mean over the pairs of jobs with the same {same}, with "
            "its 95 % confidence interval. p is the p-value of a two-sided paired t-test, with Holm's "
            f"correction for {comparisons} comparison{'s' * (comparisons > 1)}. The best configuration was "
            "selected with the same jobs, so confirm a small difference with new seeds. "
        )
    least = found[0].needed or found[0].most
    few = f"with fewer than {least} finished jobs" if least > 1 else "without a finished job"
    return f"{note}Configurations {few} have no rank."


def of_jobs(
    ranking: Sequence[JobRow],
    objective: str,
    direction: Direction,
    directory: Path,
    numbers: Mapping[int, JobNumbers],
    key_of: Mapping[int, str],
    pages: Mapping[int, str],
    shown: int,
) -> Iterator[str]:
    """Yield the section of the jobs.

    Args:
        ranking: the jobs, best first.
        objective: the objective's name.
        direction: whether a high or a low objective is better.
        directory: the directory of the sweep; links are relative to it.
        numbers: the numbers of the jobs, by their number.
        key_of: the key of the marks of each job in the charts.
        pages: the addresses of the jobs' runs in MLflow.
        shown: the number of jobs in the table, best first.
    """
    names = varying(ranking) or keys(ranking)
    measured = measures(ranking, objective)
    metrics = [name for name in _metrics(numbers, objective) if name not in measured][:METRICS]
    first = "front" if front_of(ranking) else "rank"
    right = {first, "job", *measured, *metrics, "time"}
    columns = [first, "job", *names, *measured, *metrics, "time", "state", *(["MLflow"] if pages else [])]
    heads = [_head(name, numeric=name in right) for name in columns]
    orders = _orders(ranking, names)
    lines = []
    for row, place in list(zip(ranking, places(ranking, direction), strict=True))[:shown]:
        own = numbers[row.num].values if row.num in numbers else {}
        cells = [
            _place(place),
            _cell(str(row.num), _link(row, directory), numeric=True),
            *(_override(row.overrides.get(name), orders[name]) for name in names),
            *(_value(row.value(name)) for name in measured),
            *(_value(own.get(name)) for name in metrics),
            _cell(_sortable(row.seconds), duration(row.seconds), numeric=True),
            _cell(row.outcome, escape(row.outcome)),
            *([_page_cell(row.num, pages.get(row.num))] if pages else []),
        ]
        kind = "" if row.outcome == "done" else ' class="unfinished"'
        lines.append(f'<tr{kind} data-job="{row.num}" data-key="{key_of[row.num]}">{"".join(cells)}</tr>')
    note = '<span class="screen">Click a heading to sort. </span>The number of each job links to its directory.'
    if metrics:
        note += f" {_metrics_note(objective.partition('/')[0])}"
    if len(lines) < len(ranking):
        note += f" The table shows the best {len(lines):,} of {len(ranking):,} jobs; results.csv contains all jobs."
    yield "<h2>Jobs</h2>"
    yield f'<p class="note">{note}</p>'
    yield _table(heads, lines)


def _page_cell(num: int, page: str | None) -> str:
    """Return the cell with the link to a job's run in MLflow, which does not have the run yet if there is no page."""
    return _cell(str(num), f'<a href="{escape(page)}">run</a>' if page else "")


def _metrics_note(split: str) -> str:
    """Return which value of a metric a table shows, by its split.

    Args:
        split: the split of the objective.
    """
    last = "is the last value"
    told = {"test": last, "val": last, "train": last}
    if split in told:
        told["test"] = "is measured with the best checkpoint, if there is one"
        told[split] = f"belongs to the {'validation' if split == 'val' else 'point'} with the best objective"
    return f"{'; '.join(f'{name}/… {how}' for name, how in told.items())}."


def of_failures(ranking: Sequence[JobRow], directory: Path) -> Iterator[str]:
    """Yield the section of the jobs that failed, by their reason; nothing if none did.

    Args:
        ranking: the jobs.
        directory: the directory of the sweep; links are relative to it.
    """
    reasons: dict[tuple[str, str], list[JobRow]] = defaultdict(list)
    for row in ranking:
        if row.state in _UNFINISHED:
            reasons[row.error or "the reason is unknown", row.state].append(row)
    if not reasons:
        return
    lines = []
    for (reason, state), rows in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0])):
        rows.sort(key=lambda row: row.num)
        links = ", ".join(_link(row, directory, "#") for row in rows[:50]) + (" …" if len(rows) > 50 else "")
        cells = [
            _cell(str(len(rows)), str(len(rows)), numeric=True),
            _cell(state, escape(state)),
            _cell(reason, f'<div class="error">{escape(reason)}</div>'),
            _cell(str(rows[0].num), links),
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    yield "<h2>Jobs that did not finish</h2>"
    yield '<p class="note">The log files (*.log) in the directory of a job contain the messages of the job.</p>'
    yield _table([_head("jobs", numeric=True), _head("state"), _head("reason"), _head("which")], lines)


def _metrics(numbers: Mapping[int, JobNumbers], objective: str) -> list[str]:
    return metric_names([own.values for own in numbers.values()], objective)


def _table(heads: Sequence[str], lines: Sequence[str]) -> str:
    body = "\n".join(lines)
    return (
        f'<div class="scroll table"><table><thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _head(name: str, *, numeric: bool = False) -> str:
    return f"<th{' class=number' if numeric else ''}>{escape(name)}</th>"


def _link(row: JobRow, directory: Path, before: str = "") -> str:
    folder = Path(os.path.relpath(row.directory, directory)).as_posix()
    # "./" because a name such as `a:b` would be read as a scheme.
    target = quote(f"./{folder}/", safe="/=,", errors="replace")
    return f'<a href="{escape(target)}" title="{escape(folder)}">{before}{row.num}</a>'


def _orders(rows: Sequence[JobRow], names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the places of the values of each parameter in their order."""
    return {
        name: {text: place for place, text in enumerate(in_order(row.overrides.get(name) for row in rows))}
        for name in names
    }


def _override(value: str | None, order: Mapping[str, int]) -> str:
    if value is None:
        return _cell("", "-")
    short = shortened(value)
    return _cell(str(order[value]), escape(value) if short == value else f'<span title="{value}">{short}</span>')


def _place(place: int | None) -> str:
    return _cell("" if place is None else str(place), "-" if place is None else str(place), numeric=True)


def _value(value: float | None) -> str:
    return _cell(_sortable(value), number(value), numeric=True)


def _mean(sample: Sample) -> str:
    mean, std = with_spread(sample.mean, sample.std)
    return _cell(_sortable(sample.mean), f"{mean} ± {std}" if std else mean, numeric=True)


def _difference(found: Difference | None) -> list[str]:
    if found is None:
        return [_cell("0", "best", numeric=True), _cell("", "", numeric=True)]
    mean, margin = with_spread(found.sample.mean, found.sample.margin)
    return [
        _cell(_sortable(found.sample.mean), f"{mean} ± {margin}" if margin else mean, numeric=True),
        _cell(_sortable(found.corrected), escape(p_value(found.corrected)), numeric=True),
    ]


def _sortable(value: float | None) -> str:
    """Return the sort key of a numeric cell: empty, which comes last, if there is no value or it is NaN."""
    return "" if value is None or value != value else repr(value)


def _cell(value: str, content: str, *, numeric: bool = False) -> str:
    """Return a cell that sorts by `value` and shows `content`, which is HTML."""
    return f'<td{" class=number" if numeric else ""} data-value="{escape(value)}">{content}</td>'
