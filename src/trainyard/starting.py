"""Start of a command, before Hydra is imported: what its arguments, its environment and its current folder say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trainyard.application import MULTIRUN
from trainyard.errors import TrainyardError

WHOLE = "TRAINYARD_FULL_ERROR"
"""Environment variable: whether to show tracebacks even if a message explains the error in full."""
RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Environment variables with the rank of a process."""
PRELOAD = (
    "torch",
    "numpy.random",
    "trainyard.hooks",
    "trainyard.run.record",
    "trainyard.run.trial",
    "trainyard.command",
    "trainyard.fused.runner",
)
"""Modules that the fork server of a sweep imports."""


def check_current_folder() -> None:
    """Check that the current folder exists, because paths and Hydra need it.

    Raises:
        TrainyardError: the folder was removed, or the user has no access to it.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise TrainyardError(
            "The current folder was removed, or you have no access to it. Change to an existing folder (cd), and "
            "repeat the command."
        ) from error


def sweeps_here(arguments: Sequence[str]) -> bool:
    """Return whether a command line seems to run a sweep in processes of this machine."""
    flags = {argument for argument in arguments if argument.startswith("-")}
    elsewhere = ("hydra/launcher=", "hydra.launcher.debug=")
    is_rank = any(os.environ.get(name, "0") not in ("", "0") for name in RANKS)
    sweeps = bool(flags) and flags <= {*MULTIRUN}
    return sweeps and not is_rank and not any(each.startswith(elsewhere) for each in arguments)
