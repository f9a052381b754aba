"""`trainyard train`: the training command outside a repository."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence

import click


@click.command(
    "train",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[OVERRIDE]...")
def command(arguments: Sequence[str]) -> None:
    """Train, or run a sweep with -m, with the configs in ./conf if they have a train.yaml, else with Trainyard's."""
    sys.argv[1:] = arguments
    if os.getcwd() not in sys.path and "" not in sys.path:  # noqa: PTH109, as `python -m` does: the user's own classes
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    # As `python -m trainyard.train`: what it starts and prints is then that, too.
    runpy.run_module("trainyard.train", run_name="__main__", alter_sys=True)
