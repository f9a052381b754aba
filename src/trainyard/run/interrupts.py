"""Signals to a run: before it begins they leave nothing behind, later they end it with a checkpoint."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from trainyard.run.ranks import InterruptedRunError

if TYPE_CHECKING:
    from trainyard.runner import Runner


@contextmanager
def interruptible(runner: Runner, saves: bool) -> Iterator[list[int]]:
    """End the run on the first SIGINT or SIGTERM, with a checkpoint if it saves any, and immediately on the second.
    Yield the caught signals.

    The process that started the ranks of a run passes signals on, and kills ranks that do not end: a rank that receives
    Ctrl-C twice must not end immediately.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    from trainyard.distributed.world import OURS

    is_rank = runner.strategy.world_size > 1 or OURS in os.environ

    def first(signum: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a data loader's process, forked meanwhile: the signal is for the trainer
            return
        caught.append(signum)
        runner.interrupt()
        if not is_rank:
            for each, handler in before.items():
                signal.signal(each, handler)
            what = "saving a checkpoint" if saves and runner.training else "ending the run"
            os.write(2, f"\nInterrupted: {what}. Interrupt again to stop immediately.\n".encode())

    owner = os.getpid()
    handled = [signal.SIGTERM] if OURS in os.environ else [signal.SIGINT, signal.SIGTERM]
    before: dict[int, Any] = {each: signal.signal(each, first) for each in handled}
    try:
        yield caught
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_IGN if is_rank else handler)


def _close_log(file: Path) -> None:
    """Remove the handler of a log file: what is logged later, such as at exit, would create the file again."""
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == file:
            logging.getLogger().removeHandler(handler)
            handler.close()


@contextmanager
def nothing_left_behind(directory: Path) -> Iterator[None]:
    """Remove the files that Hydra created for the run (config, log) if the run ends before it has a journal.

    Raises:
        InterruptedRunError: SIGINT or SIGTERM ended the block.
    """

    seen: list[int] = []

    def end(signum: int, frame: FrameType | None) -> None:
        seen.append(signum)
        raise KeyboardInterrupt(signum)

    on_main = threading.current_thread() is threading.main_thread()
    handled = [signal.SIGTERM] if on_main else []
    if on_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        handled.append(signal.SIGINT)
    before: dict[int, Any] = {each: signal.signal(each, end) for each in handled}
    try:
        yield
        if seen:  # code that was running, such as an import, has caught the exception of the handler
            raise KeyboardInterrupt(seen[0])
    except BaseException as error:
        begun = (directory / "metrics.jsonl").exists()
        if not begun:
            job = HydraConfig.get()
            if job.output_subdir is not None:
                shutil.rmtree(directory / job.output_subdir, ignore_errors=True)
            for file in (directory / f"{job.job.name}.log", *directory.glob(f"{job.job.name}.rank*.log")):
                _close_log(file)
                file.unlink(missing_ok=True)
            for folder in (directory, *directory.parents):
                if folder == Path.cwd() or any(folder.iterdir()):
                    break
                folder.rmdir()
        # A library may have replaced the exception of the handler with one of its own.
        if seen or isinstance(error, KeyboardInterrupt):
            signum = next(iter((*seen, *error.args)), signal.SIGINT)
            logging.getLogger("torch").setLevel(logging.WARNING)  # if its import was interrupted, it logs at exit
            when = "" if begun else " before the run began"
            raise InterruptedRunError(f"Interrupted{when}.", signum) from None
        raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
