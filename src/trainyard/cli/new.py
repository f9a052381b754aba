"""`trainyard new`: a project of one's own."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("new")
@click.argument("name")
def command(name: str) -> None:
    """Make a project NAME in a new folder of that name: it trains, tests, builds and sweeps as it is made.

    It has a model, data, a metric, a hook, their configs, tests, train.py and CI, each small, in place of yours.
    """
    from trainyard.cli.project import create
    from trainyard.quoting import shell_path

    folder = create(name, Path())
    click.echo(f"Created {folder}. Next:\n\n    cd {shell_path(folder)}\n    python train.py")
