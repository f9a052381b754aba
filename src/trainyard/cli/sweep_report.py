"""`trainyard sweep report` and `trainyard sweep export`: the ranking, the page, and tables and figures for a paper."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

import click

from trainyard.cli.output import as_json, print_json
from trainyard.errors import TrainyardError

if TYPE_CHECKING:
    from trainyard.catalog.stored_sweep import StoredSweep
    from trainyard.sweep.report.journals import JobNumbers

_DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
_PAUSE = 10.0  # seconds
_ENDED = ("done", "failed", "timeout", "pruned", "stopped")
FIGURES = ("svg", "pdf")


@click.command("report")
@_DIRECTORY
@click.option(
    "--follow", is_flag=True, help="Update the report every 10 s until the sweep ends; the page reloads itself."
)
@as_json
def report(directory: Path, follow: bool, json_: bool) -> None:
    """Print the ranking of a finished or running sweep, and rewrite report.html, results.csv and results.parquet."""
    from trainyard.sweep.report import rank, result_files

    sweep = _read(directory)
    if follow:
        _follow(sweep)
    numbers = _numbers(sweep, {})
    files = [*result_files.write(sweep.rows(), directory, sweep.direction, sweep.objective, numbers)]
    files.append(_write_page(sweep, numbers))
    if json_:
        rows = rank(sweep.rows(), sweep.direction)
        ranking = [vars(row) | {"directory": str(row.directory)} for row in rows]
        print_json({**record(sweep), "jobs": ranking, "files": [str(file) for file in files]})
        return
    print_ranking(sweep)
    click.echo(f"Report: {files[-1]}")


@click.command("export")
@_DIRECTORY
@click.option(
    "--format", "kind", type=click.Choice(["csv", "md", "latex", *FIGURES]), default="md", show_default=True,
    help="A table (csv, md, latex) or a figure (svg, pdf).",
)  # fmt: skip
@click.option(
    "--metric", "metrics", multiple=True, metavar="NAME",
    help=(
        "Metric to show (repeat the option for several metrics). Differences refer to the first metric. Default: "
        "the objective and all test metrics."),
)  # fmt: skip
@click.option(
    "--to", "file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Output file. By default, a table is printed, and a figure is written to DIR/results.svg or DIR/results.pdf.",
)  # fmt: skip
def export(directory: Path, kind: str, metrics: Sequence[str], file: Path | None) -> None:
    """Write a table or a figure for a paper: the configurations of a sweep, mean ± standard deviation over the seeds.

    Jobs that differ only in the seed or the fold are repeats of one configuration. The table contains paired
    differences from the best configuration, with p-values after Holm's correction. The figure contains learning curves
    with bands, and means with 95 % confidence intervals.
    """
    from trainyard.sweep.report import export as tables

    sweep = _read(directory)
    numbers = _numbers(sweep, {})
    table = tables.Comparison.of(sweep.rows(), sweep.objective, sweep.direction, numbers, metrics)
    if kind not in FIGURES:
        text = tables.as_text(table, kind, sweep.objective)
        if file is None:
            click.echo(text, nl=False)
            return
        with _told(file):
            file.write_text(text, encoding="utf-8")
    else:
        from trainyard.sweep.report import figures

        file = file or directory / f"results.{kind}"
        with _told(file):
            figures.write(table, numbers, sweep.objective, file, kind)
    click.echo(file)


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Report a file that cannot be written, without a traceback."""
    try:
        yield
    except OSError as error:
        raise TrainyardError(
            f"{file} could not be written: {error.strerror}. Choose another file with --to."
        ) from error


def record(sweep: StoredSweep) -> dict[str, object]:
    """Return the listed properties of a sweep. If jobs are repeats, the best value is the mean of the best
    configuration."""
    from trainyard.sweep.report.ranking import rank
    from trainyard.sweep.report.repeats import configurations
    from trainyard.sweep.report.rows import front_of

    rows = sweep.rows()
    first = next((row for row in rank(rows, sweep.direction) if row.ranked), None)
    best = next((each.mean for each in configurations(rows, sweep.direction) if each.is_whole), None)
    return {
        "directory": str(sweep.directory),
        "running": sweep.running,
        "started": sweep.started,
        "states": {job.num: job.state for job in sweep.jobs.values()},
        "objective": sweep.objective,
        "best": first.objective if best is None and first is not None else best,
        "best_job": None if first is None else first.num,
        "pareto_front": [num for num, front in front_of(rows).items() if front == 1],
    }


def print_ranking(sweep: StoredSweep) -> None:
    """Print the ranking of a sweep."""
    from rich.console import Console

    from trainyard.sweep.report import table, text

    ranking = table(sweep.rows(), sweep.objective, sweep.direction)
    if sys.stdout.isatty():
        Console().print(ranking)
    else:
        click.echo(text(ranking))


def _read(directory: Path) -> StoredSweep:
    from trainyard.catalog.stored_sweep import StoredSweep

    sweep = StoredSweep.read(directory)
    if not sweep.jobs:
        raise TrainyardError(f"{directory}: this sweep has no jobs yet.")
    return sweep


def _numbers(sweep: StoredSweep, known: dict[int, JobNumbers]) -> dict[int, JobNumbers]:
    """Return the numbers of all jobs; those in `known` are not read again, and those of jobs that ended are added."""
    from trainyard.sweep.report.journals import read_all

    rows = sweep.rows()
    found = known | read_all([row for row in rows if row.num not in known], sweep.objective, sweep.direction)
    known.update({row.num: found[row.num] for row in rows if row.state in _ENDED})
    return found


def _write_page(sweep: StoredSweep, numbers: Mapping[int, JobNumbers], live: float | None = None) -> Path:
    from trainyard.sweep.report import html

    directory = sweep.directory.absolute()
    return html.Report(
        sweep.rows(),
        sweep.directory,
        title=f"{directory.parent.name} {directory.name}",
        objective=sweep.objective,
        direction=sweep.direction,
        searched=sweep.searched,
        goals=sweep.goals,
        found=numbers,
        live=live,
        has_seed=sweep.has_seed,
    ).write()


def _follow(sweep: StoredSweep) -> None:
    """Update the page repeatedly until no process runs the sweep, or Ctrl-C."""
    known: dict[int, JobNumbers] = {}
    said = False
    try:
        while sweep.running:
            page = _write_page(sweep, _numbers(sweep, known), live=_PAUSE)
            if not said:
                click.echo(
                    f"Report: {page}. It is updated every {_PAUSE:g} s until the sweep ends; Ctrl-C stops the updates."
                )
                said = True
            sleep(_PAUSE)
            sweep.read_on()
    except KeyboardInterrupt:
        click.echo()
