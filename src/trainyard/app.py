"""Entry point of a training application: it starts what takes long, and then imports Hydra and the rest."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from trainyard.console import escape_unencodable, outlast_reader, tell
from trainyard.errors import TrainyardError
from trainyard.garbage import collect_rarely
from trainyard.starting import PRELOAD, WHOLE, check_current_folder, sweeps_here


def main(config_path: str | Path, config_name: str = "train") -> None:
    """Run the command line: compose the config with Hydra, train, and end with a status.

    Errors with a complete message are shown as one paragraph, without a traceback (set HYDRA_FULL_ERROR=1 to see it).
    The exit status is 2 for an invalid config, 1 for a failed training, and 128 + n after signal n.

    Args:
        config_path: the folder of the configs.
        config_name: the primary config in it.
    """
    whole = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ[WHOLE] = "1" if whole else ""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra passes exceptions on, and they are explained here
    logging.raiseExceptions = whole  # a log that cannot be written is no reason for a traceback
    escape_unencodable()
    outlast_reader()
    try:
        check_current_folder()
    except TrainyardError as error:
        sys.exit(tell(error))
    collect_rarely()
    atexit.register(gc.freeze)  # Python would collect garbage once more: 0.3 s with the modules of a search
    try:
        with _fork_server() if sweeps_here(sys.argv[1:]) else nullcontext():
            from trainyard.command import run

            run(config_path, config_name)
    except KeyboardInterrupt as error:  # before the run, or the second in it: its traceback is of no use
        if whole:
            raise
        print("\nEnded.", file=sys.stderr)
        # A handler of this project names its signal; Ctrl-C comes without one.
        sys.exit(128 + next((each for each in error.args if isinstance(each, int)), signal.SIGINT))


@contextmanager
def _fork_server() -> Iterator[None]:
    """Start the process that imports torch for the jobs of a sweep; end it if no sweep has used it."""
    from trainyard.sweep.executor.early import end_early, start_early
    from trainyard.sweep.executor.slots import find_slots

    start_early([*PRELOAD, "trainyard.sweep.stack_tasks"], find_slots()[0].threads)
    try:
        yield
    finally:
        end_early()
