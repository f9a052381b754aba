"""`trainyard gc`: remove old checkpoints and temporary files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from trainyard.catalog import find
from trainyard.catalog.find import default_folders
from trainyard.catalog.garbage import freed, garbage
from trainyard.checks import existing_folder
from trainyard.cli.output import size
from trainyard.errors import counted
from trainyard.files import remove
from trainyard.track import journal


@click.command("gc")
@click.argument("folders", nargs=-1, metavar="[FOLDER]...", type=click.Path(path_type=Path))
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
def command(folders: Sequence[Path], yes: bool, dry_run: bool) -> None:
    """Remove old checkpoints, and temporary files of killed processes, in FOLDERs.

    The default FOLDERs are outputs and multirun, or the current folder if neither exists. A run keeps its best
    checkpoints. An unfinished run, or a run without a best checkpoint, also keeps its newest checkpoint. Runs that are
    in progress are skipped. Nothing is removed from MLflow.
    """
    for folder in folders:
        existing_folder("FOLDER", folder)
    runs = find(folders or default_folders())
    training = sum(run.state == "running" for run in runs)
    if training:
        click.echo(f"Runs in progress, which are skipped: {training} of {len(runs)}.")
    found = [(run, paths) for run in runs if (paths := garbage(run))]
    files = [path for _, paths in found for path in paths]
    if not files:
        click.echo("Nothing to remove.")
        return
    what = f"{counted(len(files), 'file')} of {counted(len(found), 'run')} (checkpoints and temporary files)"
    click.echo(f"{what}: {size(freed(files))}.")
    if dry_run:
        for path in files:
            click.echo(f"  {path}")
        return
    if not yes and not click.confirm("Remove this file?" if len(files) == 1 else "Remove these files?"):
        click.echo("Nothing was removed.")
        return
    resumed = 0  # while this command waited for an answer
    for run, paths in found:
        with journal.kept_free(run.directory / journal.FILE) as free:
            resumed += not free
            for path in paths if free else ():
                remove(path)
    if resumed:
        click.echo(f"Runs that were resumed meanwhile, which are skipped: {resumed} of {len(found)}.")
    click.echo("Removed." if resumed < len(found) else "Nothing was removed.")
