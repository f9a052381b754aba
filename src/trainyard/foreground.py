"""Command that runs in the terminal of this process."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any


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
