"""`trainyard compare`: where runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from trainyard.catalog import compare, resolve
from trainyard.catalog.compare import Rows
from trainyard.cli.completion import RUN
from trainyard.cli.output import SHORT, as_json, curve, number, print_json, print_table
from trainyard.errors import TrainyardError


@click.command("compare")
@click.argument("runs", type=RUN, nargs=-1, metavar="RUN RUN...")
@as_json
def command(runs: Sequence[str], json_: bool) -> None:
    """Compare RUNs: differences in settings, code and environment, all metrics, and the curve of the objective."""
    found = [resolve(run) for run in runs]
    if len({run.directory.resolve() for run in found}) < 2:
        raise TrainyardError("trainyard compare needs at least two different runs.")
    comparison = compare(found)
    if json_:
        print_json({"runs": [run.facts for run in found], **asdict(comparison)})
        return
    heads = [f"{run.info.name} ({run.info.id[:SHORT]})" for run in found]
    parts: dict[str, Rows] = asdict(comparison)
    for title, rows in parts.items():
        if rows:
            print_table([title, *heads], [[name, *map(_short, values)] for name, values in rows.items()])
        else:
            click.echo(f"{title}: the same")
        click.echo()
    for run, head in zip(found, heads, strict=True):
        if run.objective in run.history.series:
            points = run.history.series[run.objective]
            click.echo(f"{run.objective}  {curve([point.value for point in points])}  {head}")


def _short(value: object) -> str:
    text = number(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
