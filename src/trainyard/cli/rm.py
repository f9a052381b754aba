"""`trainyard rm`: remove runs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack

import click

from trainyard.catalog import StoredRun, resolve
from trainyard.catalog.garbage import freed
from trainyard.cli.completion import RUN
from trainyard.cli.output import size
from trainyard.errors import TrainyardError, counted
from trainyard.track import journal


@click.command("rm")
@click.argument("runs", type=RUN, nargs=-1, required=True, metavar="RUN...")
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
def command(runs: Sequence[str], yes: bool) -> None:
    """Remove the directories of RUNs, including checkpoints. Nothing is removed from MLflow.

    If one of the RUNs is in progress, the command removes nothing and reports an error.
    """
    found = list({run.directory.resolve(): run for run in map(resolve, runs)}.values())
    for run in found:
        if run.state == "running":
            raise _in_progress(run)
    for run in found:
        click.echo(f"{run.info.name}  {run.state}  {run.directory}")
    click.echo(f"{counted(len(found), 'run')}: {size(freed([run.directory for run in found]))}.")
    if not yes and not click.confirm("Remove this directory?" if len(found) == 1 else "Remove these directories?"):
        click.echo("Nothing was removed.")
        return
    with ExitStack() as locks:
        for run in found:  # one may have been resumed while this command waited for an answer
            if not locks.enter_context(journal.kept_free(run.directory / journal.FILE)):
                raise _in_progress(run)
        for run in found:
            shutil.rmtree(run.directory)
    click.echo("Removed.")


def _in_progress(run: StoredRun) -> TrainyardError:
    return TrainyardError(
        f"{run.directory}: this run is in progress. Stop a single run with Ctrl-C or SIGTERM, and a job of a sweep "
        "with `trainyard sweep stop DIR JOB`."
    )
