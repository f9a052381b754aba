"""`trainyard runs`: the runs in folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from trainyard.catalog import StoredRun, Where, find
from trainyard.catalog.find import default_folders
from trainyard.checks import existing_folder
from trainyard.cli.output import SHORT, as_json, date, number, print_json, print_table, progress
from trainyard.errors import ConfigError
from trainyard.quoting import named
from trainyard.sweep.report.rows import duration


@click.command("runs")
@click.argument("folders", nargs=-1, metavar="[FOLDER]...", type=click.Path(path_type=Path))
@click.option("--where", "condition", metavar="CONDITION", help="For example 'val/accuracy>0.9 and optim.lr<1e-2'.")
@click.option(
    "--sort",
    metavar="NAME",
    help="Sort by a metric, a setting or a property; -NAME sorts in descending order.",
)
@click.option("--columns", metavar="NAME,...", help="Additional metrics, settings and properties to show.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Show the first N runs.")
@as_json
def command(
    folders: Sequence[Path],
    condition: str | None,
    sort: str | None,
    columns: str | None,
    limit: int | None,
    json_: bool,
) -> None:
    """List the runs below FOLDERs, sorted by start time.

    The default FOLDERs are outputs and multirun, or the current folder if neither exists.

    Names are metrics (val/accuracy), settings (optim.lr, model) and the properties id, name, state, epoch, step,
    started, seconds and directory. A metric of the objective's split has its value at the best validation; other
    metrics have their last value.
    """
    for folder in folders:
        existing_folder("FOLDER", folder)
    searched = folders or default_folders()
    found = runs = find(searched)
    if condition is not None:
        where = Where(condition)
        where.check(runs)
        runs = [run for run in runs if where(run)]
    if sort is not None:
        runs = _sorted(runs, sort)
    extra = [name for name in (columns or "").split(",") if name]
    _check(runs, "--columns", extra)
    shown = runs[:limit]
    if json_:
        print_json([_record(run, extra) for run in shown])
        return
    if not runs:
        click.echo("No run matches the condition." if found else f"No runs found in {named(searched)}.")
        return
    headers = ["id", "name", "state", "epoch", "objective", "best", *extra, "started", "time", "directory"]
    print_table(headers, [_row(run, extra) for run in shown], right=("epoch", "best", "time", *extra))
    if len(shown) < len(runs):
        click.echo(f"{len(shown)} of {len(runs)} runs.")


def _sorted(runs: Sequence[StoredRun], by: str) -> list[StoredRun]:
    """Return the runs by a value, lowest first, or highest first for `-name`; those without it come last."""
    name, reverse = (by[1:], True) if by[:1] == "-" else (by, False)
    _check(runs, "--sort", [name])
    having = [run for run in runs if run.value(name) is not None]
    numbers = all(isinstance(run.value(name), int | float) for run in having)
    having.sort(key=lambda run: run.value(name) if numbers else str(run.value(name)), reverse=reverse)
    return [*having, *(run for run in runs if run.value(name) is None)]


def _check(runs: Sequence[StoredRun], option: str, names: Sequence[str]) -> None:
    known = {name for run in runs for name in run.names} if names else set()
    for name in names:
        if known and name not in known:
            raise ConfigError(option, name, "a metric, a setting or a property of these runs", options=sorted(known))


def _row(run: StoredRun, extra: Sequence[str]) -> list[str]:
    best = run.best
    return [
        run.info.id[:SHORT],
        run.info.name,
        run.state,
        progress(run),
        run.objective or "-",
        "-" if best is None else number(best.point.value),
        *(number(run.value(name)) for name in extra),
        date(run.info.start_time),
        duration(run.history.seconds),
        str(run.directory),
    ]


def _record(run: StoredRun, extra: Sequence[str]) -> dict[str, Any]:
    best = run.best
    found = None if best is None else {"name": best.name, "value": best.point.value, "step": best.point.step}
    return run.facts | {"best": found, "metrics": run.metrics} | {name: run.value(name) for name in extra}
