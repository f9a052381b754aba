"""`trainyard new`: create a new project."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("new")
@click.argument("name")
def command(name: str) -> None:
    """Create a project in the new folder NAME. Training, sweeps, tests and the build of a wheel work immediately.

    The project contains a small model, data, a metric and a hook with their configs, tests, train.py and CI. Replace
    the four classes with your own.
    """
    from trainyard.cli.project import create
    from trainyard.quoting import shell_path

    folder = create(name, Path())
    click.echo(f"Created {folder}. Next:\n\n    cd {shell_path(folder)}\n    python train.py")
