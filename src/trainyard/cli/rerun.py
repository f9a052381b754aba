"""`trainyard rerun`: repeat the command of a run, with changes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack

import click

from trainyard.catalog.again import with_changes
from trainyard.cli.completion import RUN
from trainyard.cli.reproduce import stored
from trainyard.foreground import replace_process


@click.command("rerun")
@click.argument("run", type=RUN)
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...", type=click.UNPROCESSED)
@click.option("--multirun", "-m", is_flag=True, help="Run a sweep over the changes.")
@click.option(
    "--uri",
    metavar="URI",
    help="MLflow store of a RUN that is not on this machine (default: MLFLOW_TRACKING_URI, otherwise mlflow.db).",
)
@click.option(
    "--trust", is_flag=True, help="Allow a RUN that is not recognized as your own. Its config can run any code."
)
def command(run: str, changes: Sequence[str], multirun: bool, uri: str | None, trust: bool) -> None:
    """Repeat the command of a RUN with the current configs; KEY=VALUE replaces overrides of the same keys.

    Another option of a group (model=cnn) also removes the overrides of keys in this group (model.hidden=...).
    """
    with ExitStack() as folders:
        found = stored(run, uri, trust, folders)
        launch = with_changes(found, changes, multirun)
    click.echo(f"$ {shlex.join(['python', *launch.command[1:]])}", err=True)
    replace_process(launch.command, launch.folder, launch.environment)
