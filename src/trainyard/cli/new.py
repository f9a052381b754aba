"""`trainyard new`: create a new project."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("new")
@click.argument("name")
def command(name: str) -> None:
    """Create a project in the new folder NAME, which can be trained, tested, built and swept immediately.

    It contains a small model, data, a metric, a hook, their configs, tests, train.py and CI: replace them with yours.
    """
    from trainyard.cli.project import create
    from trainyard.quoting import shell_path

    folder = create(name, Path())
    click.echo(f"Created {folder}. Next:\n\n    cd {shell_path(folder)}\n    python train.py")
