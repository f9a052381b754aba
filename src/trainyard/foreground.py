"""Command that runs in the terminal of this process, or in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


def run_to_end(command: Sequence[str], **options: Any) -> int:
    """Run a command to its end, and return its exit status as a shell does: 128 + N after signal N.

    Ctrl-C goes to both processes; the command decides what follows from it. (`subprocess.run` would kill the command
    after a quarter of a second, before it has saved a checkpoint.)

    Args:
        command: the command.
        **options: options of `subprocess.Popen`.
    """
    with subprocess.Popen(command, **options) as process:
        while True:
            try:
                status = process.wait()
            except KeyboardInterrupt:
                continue
            return status if status >= 0 else 128 - status


def replace_process(command: Sequence[str], folder: Path) -> NoReturn:
    """Run a command in place of this process, which then receives the signals to this process, each of them once.

    Args:
        command: the command; its first word is the path of the program.
        folder: the folder in which it runs.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(folder)
    os.execv(command[0], [*command])
