"""The `trainyard` command: lists, compares, follows and removes runs, starts trainings, and checks the installation.

Each subcommand has its own file, which is imported when it is called, so that the command starts without torch and
MLflow.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

import trainyard
from trainyard.console import escape_unencodable, tell
from trainyard.errors import TrainyardError, nearest
from trainyard.starting import check_current_folder

# In the order of a day's work, with the line that the list of commands shows.
COMMANDS = {
    "new": "Create a new project.",
    "train": "Train, or run a sweep with -m; takes Hydra's overrides.",
    "runs": "List runs, filtered and sorted.",
    "show": "Show one run: its metrics, settings, code and files.",
    "compare": "Compare runs: settings, code, environment and metrics.",
    "tail": "Print the metrics of a run as they are recorded.",
    "rerun": "Repeat the command of a run, with changes.",
    "reproduce": "Repeat a run exactly, and compare curves and weights.",
    "sweep": "List, watch, continue, steer, report and export sweeps.",
    "export": "Export the model of a run as safetensors, with a model card.",
    "sync": "Upload runs that are not in MLflow yet.",
    "rm": "Remove runs.",
    "gc": "Remove old checkpoints and temporary files.",
    "schema": "Write JSON schemas of the configs, for editors.",
    "doctor": "Check the installation, the device and MLflow.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"trainyard.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):  # without importing them
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and args[0][:1] != "-":
            close = nearest(args[0], COMMANDS)
            hint = f" Did you mean {close!r}?" if close else ""
            accepted = ", ".join(COMMANDS)
            raise TrainyardError(f"trainyard: {args[0]!r} is not a command. Commands: {accepted}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(trainyard.__version__, prog_name="trainyard")
def group() -> None:
    """Train PyTorch models from Hydra configs, and manage the runs.

    A RUN is the directory of a run, the start of its ID, its name, or the name of its directory.
    """
    check_current_folder()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command, and end with its status: 2 if the user has to change something."""
    escape_unencodable()
    options: dict[str, Any] = {"prog_name": "trainyard"}
    try:
        group(arguments, **options)
    except TrainyardError as error:
        sys.exit(tell(error))
    except OSError as error:  # a file that cannot be read or written, or a file where a folder is expected
        if error.filename is None:
            raise
        sys.exit(tell(TrainyardError(f"{error.filename} cannot be read or written: {error.strerror}.")))
