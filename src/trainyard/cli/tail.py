"""`trainyard tail`: print the metrics of a run as they are recorded."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from trainyard.catalog import resolve
from trainyard.cli.completion import RUN
from trainyard.cli.output import number
from trainyard.track import journal

_PAUSE = 0.3  # seconds between two readings


@click.command("tail")
@click.argument("run", type=RUN)
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=10, show_default=True, help="Start with the last N lines."
)
@click.option("--follow/--no-follow", "-f/-F", default=True, help="Keep printing while the run trains (default).")
@click.option(
    "--metric",
    "prefix",
    default="",
    metavar="PREFIX",
    help="Print only metrics with this prefix, such as val/ or train/loss.",
)
@click.option("--json", "json_", is_flag=True, help="Print these records as JSON, one per line.")
def command(run: str, lines: int, follow: bool, prefix: str, json_: bool) -> None:
    """Print the metrics of a RUN, and then new metrics as they are recorded, until the run ends.

    Ctrl-C ends only this command.
    """
    found = resolve(run)
    path = found.directory / journal.FILE
    shown, offset = _new(path, 0, prefix, json_)
    for line in shown[-lines:] if lines else []:
        click.echo(line)
    try:
        trains = follow
        while trains:
            trains = journal.being_written(path)  # asked before the last reading
            time.sleep(_PAUSE if trains else 0)
            shown, offset = _new(path, offset, prefix, json_)
            for line in shown:
                click.echo(line)
    except KeyboardInterrupt:
        return


def _new(path: Path, offset: int, prefix: str, json_: bool) -> tuple[list[str], int]:
    """Return the lines of the records from `offset` on, and the offset of their end."""
    lines = []
    for record, end in journal.read(path, offset):
        offset = end
        if text := _text(record, prefix):
            lines.append(json.dumps(journal.encode(record)) if json_ else text)
    return lines, offset


def _text(record: dict[str, Any], prefix: str) -> str:
    """Return a record as a line; empty if it is not shown."""
    clock = time.strftime("%H:%M:%S", time.localtime(record["time"]))
    if record["kind"] == "status" and not prefix:
        message = f" ({record['message']})" if record.get("message") else ""
        return f"{clock}  {record['status'].lower()}{message}"
    if record["kind"] != "metrics":
        return ""
    values = "  ".join(f"{name} {number(value)}" for name, value in record["values"].items() if name.startswith(prefix))
    epoch = f"epoch {record['epoch']}  " if "epoch" in record else ""
    return f"{clock}  {epoch}iter {record['step']}  {values}" if values else ""
