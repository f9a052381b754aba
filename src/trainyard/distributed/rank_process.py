"""Process of a rank that `trainyard.distributed.launch` has started: its side of the pipe."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType, TracebackType
from typing import Any, Literal

import torch.distributed as dist

from trainyard.errors import TrainyardError

INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
NEVER = 0.5  # seconds by which the end of a process, or its consequence, may be noticed late


@dataclass(frozen=True)
class Call:
    """Work of every rank: see `trainyard.distributed.launch.launch`."""

    function: Callable[[Any], Any]
    argument: Any
    where: Callable[[Sequence[FrameType]], str] | None = None


@dataclass(frozen=True)
class Report:
    """Report of how a rank ended.

    Args:
        state: the state; `killed` for a rank that could not report.
        time: the time, on the machine's monotonic clock.
        value: the return value of the function.
        kind: the class of the raised error.
        error: its message.
        trace: its traceback; None if the message is sufficient.
        status: the requested exit status.
        place: description of the rank's position in the code.
        in_hook: the place is in a hook.
        collective: whether it is a communication error, which another rank may have caused.
    """

    state: Literal["done", "failed", "interrupted", "killed"]
    time: float
    value: Any = None
    kind: str = ""
    error: str = ""
    trace: str | None = None
    status: int = 0
    place: str = ""
    collective: bool = False

    @property
    def in_hook(self) -> bool:
        return self.place.startswith("in the hook")


def run_rank(call: Call, rank: int, pipe: Connection) -> None:
    """Run the function in the process of a rank, and send a report."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the one that started this passes it on
    ended: list[int] = []

    def end(signum: int, frame: FrameType | None) -> None:
        ended.append(signum)
        raise KeyboardInterrupt(signum)

    signal.signal(signal.SIGTERM, end)
    lock = threading.Lock()
    threading.Thread(target=_answer, args=(call, pipe, lock), daemon=True).start()
    try:  # a signal that arrived since the start of this process raises here
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        report = Report("done", time.monotonic(), call.function(call.argument))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # A library may have replaced the exception of the handler with one of its own.
        report = _report_of(KeyboardInterrupt(*ended) if ended else error, call)
    with lock:
        pipe.send(report)
    if report.state == "failed":  # others may be waiting for this rank: they notice when it is gone
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(report.status)
    if report.state == "interrupted":
        sys.exit(report.status)


def _answer(call: Call, pipe: Connection, lock: threading.Lock) -> None:
    """Answer requests for the place of this rank; end it when the launcher is gone."""
    ident = threading.main_thread().ident
    while True:
        try:
            pipe.recv()
        except (EOFError, OSError):
            os._exit(1)
        frame = sys._current_frames().get(ident) if ident is not None else None
        frames = [each for each, _ in traceback.walk_stack(frame)][::-1]
        with lock:
            pipe.send(place_of(frames, call))


def place_of(frames: Sequence[FrameType], call: Call) -> str:
    """Describe the place of a stack: the application's description, else the innermost line outside torch."""
    known = call.where(frames) if call.where is not None else ""
    if known or not frames:
        return known
    own = [frame for frame in frames if f"{os.sep}torch{os.sep}" not in frame.f_code.co_filename]
    frame = (own or frames)[-1]
    return f"in {frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"


def _report_of(error: BaseException, call: Call) -> Report:
    status = getattr(error, "status", None)
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt) or status in INTERRUPTED:
        text = str(error) if isinstance(error, TrainyardError) else "Interrupted before the run began."
        return Report("interrupted", time.monotonic(), kind=_kind(error), error=text, status=status or INTERRUPTED[1])
    known = isinstance(error, TrainyardError)
    return Report(
        "failed",
        time.monotonic(),
        kind=_kind(error),
        error=str(error),
        trace=None if known else "".join(traceback.format_exception(error.with_traceback(_own(error)))),
        status=status or 1,
        place="" if known else place_of(_frames(error.__traceback__), call),
        collective=isinstance(error, dist.DistError) or "/gloo/" in str(error),
    )


def _kind(error: BaseException) -> str:
    return type(error).__name__


def _own(error: BaseException) -> TracebackType | None:
    """Return the traceback without the frame of `run_rank`."""
    return error.__traceback__ and error.__traceback__.tb_next


def _frames(trace: TracebackType | None) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(trace)]
