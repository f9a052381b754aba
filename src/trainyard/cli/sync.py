"""`trainyard sync`: upload runs that MLflow does not have, or has only in part."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from trainyard.catalog.find import default_folders
from trainyard.checks import existing_folder
from trainyard.cli.store import store


@click.command("sync")
@click.argument("folders", nargs=-1, metavar="[FOLDER]...", type=click.Path(path_type=Path))
@click.option("--uri", metavar="URI", help="MLflow store (default: the store recorded in each run).")
@click.option(
    "--experiment",
    metavar="NAME",
    help="Experiment of runs that MLflow does not have yet (default: as recorded in each run).",
)
@click.option(
    "--trust",
    is_flag=True,
    help=(
        "From now on, trust directories that are not recognized as your own. Trainyard then builds their models (which "
        "runs code), follows links that lead out of these directories, and uploads their runs to the store "
        "that they name."
    ),
)
def command(folders: Sequence[Path], uri: str | None, experiment: str | None, trust: bool) -> None:
    """Upload the runs below FOLDERs to MLflow.

    The default FOLDERs are outputs and multirun, or the current folder if neither exists. Records that are already in
    MLflow are not sent again. The exit status is 1 if records are still missing.
    """
    for folder in folders:
        existing_folder("FOLDER", folder)
    from trainyard import temporary
    from trainyard.track.shipper.__main__ import configure
    from trainyard.track.sync import sync

    given = store(uri) if uri else None
    configure()
    temporary.use_own_folder()
    if not sync(list(folders) or default_folders(), given, experiment, trust):
        sys.exit(1)
