"""Command that runs in the terminal of this process, or in its place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

_TICK = 0.2  # seconds


def run_to_end(command: Sequence[str], **options: Any) -> int:
    """Run a command to its end, and return its exit status as a shell does: 128 + N after signal N.

    Ctrl-C goes to both processes; the command decides what follows from it. (`subprocess.run` would kill the command
    after a quarter of a second, before it has saved a checkpoint.) A SIGTERM to this process is sent to the command.
    To be called in the main thread.

    Args:
        command: the command.
        **options: options of `subprocess.Popen`.
    """
    received: list[int] = []
    before: Any = signal.signal(signal.SIGTERM, lambda signum, frame: received.append(signum))
    try:
        with subprocess.Popen(command, **options) as process:
            while True:
                with suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
                    status = process.wait(_TICK)
                    return status if status >= 0 else 128 - status
                while received:
                    process.send_signal(received.pop())
    finally:
        signal.signal(signal.SIGTERM, before)


def replace_process(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> NoReturn:
    """Run a command in place of this process, which then receives the signals to this process, each of them once.

    Args:
        command: the command; its first word is the path of the program.
        folder: the folder in which it runs.
        environment: its environment variables; None for those of this process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(folder)
    os.execve(command[0], [*command], os.environ if environment is None else environment)
