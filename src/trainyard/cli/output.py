"""Output of the subcommands: tables, JSON, numbers, times, small curves."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from trainyard.track.journal import encode

if TYPE_CHECKING:
    from trainyard.catalog import StoredRun

_BARS = "▁▂▃▄▅▆▇█"
SHORT = 8  # characters of an id, as it is shown

as_json = click.option("--json", "json_", is_flag=True, help="Print JSON instead of text.")


def print_json(value: Any) -> None:
    """Print a value as JSON; NaN and infinities as their names."""
    click.echo(json.dumps(encode(value), indent=1, default=str))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table, at most as wide as the terminal; in a pipe or a file, without a limit.

    Args:
        headers: the names of the columns; empty strings for no header line.
        rows: texts.
        right: the columns that are aligned to the right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_header=any(headers), show_edge=False, pad_edge=False)
    for name in headers:
        table.add_column(Text(name), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(width=None if sys.stdout.isatty() else 10_000)
    with console.capture() as capture:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in capture.get().rstrip().splitlines()))


def number(value: object) -> str:
    """Format a value: `0.9733`, `1e-05`, `120000`; `-` for None."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if math.isfinite(value) and value == int(value) and abs(value) < 1e15 and isinstance(value, int):
        return str(value)
    return f"{value:.4g}" if not 1e-3 <= abs(value) < 1e4 else f"{value:.4f}"


def date(seconds: float) -> str:
    """Format unix seconds in local time: `2026-01-31 12:00`."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def size(count: float) -> str:
    """Format bytes: `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def curve(values: Sequence[float], width: int = 40) -> str:
    """Return a curve of at most `width` characters, from the lowest value to the highest."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    if len(values) > width:
        values = [values[round(index * (len(values) - 1) / (width - 1))] for index in range(width)]
    low, high = min(values), max(values)
    span = high - low or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int((value - low) / span * len(_BARS)))] for value in values)


def progress(run: StoredRun) -> str:
    """Return the progress of a run: `3/20` epochs, or its iterations."""
    end = run.settings.get("loop.max_epochs")
    if run.epoch is not None and end is not None:
        return f"{run.epoch}/{end}"
    end = run.settings.get("loop.max_iters")
    return f"{run.step}/{end} it" if end is not None else str(run.step)
