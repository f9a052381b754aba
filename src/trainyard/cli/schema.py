"""`trainyard schema`: JSON schemas of the configs, for editors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from trainyard.checks import existing_folder
from trainyard.errors import counted


@click.command("schema")
@click.argument("configs", metavar="[CONF]", default="conf", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the schemas (default: schemas next to CONF).",
)
@click.option("--modelines", is_flag=True, help="Add a first line that names the schema to each config in CONF.")
def command(configs: Path, folder: Path | None, modelines: bool) -> None:
    """Write JSON schemas of the config groups in CONF (default: conf), from signatures and docstrings.

    With these schemas, an editor with yaml-language-server (such as VS Code with its YAML extension) completes and
    checks the configs, including those of your own classes, and shows the description of each argument.
    """
    existing_folder("CONF", configs)
    from trainyard.config.schema_files import put_modelines, schemas, write
    from trainyard.train import own_configs

    sys.path.insert(0, os.getcwd())  # noqa: PTH109, classes beside the configs
    folder = folder or configs.absolute().parent / "schemas"
    folders = {each.resolve(): each for each in (own_configs(), configs)}
    found = schemas(list(folders.values()), lambda line: click.echo(line, err=True))
    files = write(found, folder)
    click.echo(f"Wrote {counted(len(files), 'schema')} to {folder}.")
    if modelines:
        click.echo(f"Added the line with the schema to {counted(len(put_modelines(configs, folder)), 'config')}.")
