"""Forked processes that are killed at a drawn moment."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import CodeType, FrameType
from typing import Any, Literal

from trials import FaultError

import trainyard

LIMIT = 300
"""Seconds after which a process is taken to hang."""
SOURCE = str(Path(trainyard.__file__).parent)
CHANGES = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

Unit = Literal["call", "file", "time"]


@dataclass(frozen=True)
class Moment:
    """Moment at which a process gets a signal.

    Attributes:
        unit: what is counted: calls of Trainyard's functions, changes of files in the case's folder (a file opened to
            be written, renamed, removed, …), or microseconds. The signal comes just before the call or the change.
        at: the count at which the signal comes.
        signum: the signal.
        again: the count, from there on, at which it comes a second time; None for once.
    """

    unit: Unit
    at: int
    signum: int
    again: int | None = None

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        twice = "" if self.again is None else f" and again {self.again} later"
        return f"{name}@{self.unit}:{self.at}{twice}"


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: its exit status; minus the number of the signal that killed it.
        counts: of calls (0 where they were not counted), changes of files and microseconds; none where it was killed.
        value: what the function returned, as JSON holds it.
        output: what it printed.
    """

    status: int
    counts: dict[str, int]
    value: Any
    output: str

    def tail(self) -> str:
        return "\n".join(self.output.strip().splitlines()[-12:])


def draw(random: Random, counts: dict[str, int]) -> Moment:
    """Draw a moment in a process that is like one that has ended with these counts."""
    units: tuple[Unit, ...] = ("call", "file", "time")
    unit = random.choice(units)
    signum = random.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
    total = max(2, counts[unit])
    again = random.randint(1, max(1, total // 10)) if signum == signal.SIGTERM and random.random() < 0.5 else None
    return Moment(unit, random.randint(1, total - 1), signum, again)


def run(function: Callable[[], Any], folder: Path, moment: Moment | None = None, *, counted: bool = False) -> Ended:
    """Run a function in a forked process, in a folder, and wait for its end.

    Args:
        function: what it returns can be written as JSON.
        folder: the working directory.
        moment: when the process gets a signal; None for never.
        counted: whether to count the calls, which takes time.

    Raises:
        FaultError: the function raised it, or the process did not end.
    """
    log = folder / "output.txt"
    before = log.stat().st_size if log.exists() else 0
    report_fd = os.memfd_create("report")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        counter = _Counter(moment, folder, counted or (moment is not None and moment.unit == "call"))
        _be_the_child(function, folder, log, report_fd, counter)
    if moment is not None and moment.unit == "time":
        _signal_in_time(pid, moment)
    status = _wait(pid)
    with os.fdopen(report_fd) as file:
        file.seek(0)
        said = file.read()
    report = json.loads(said) if said else {"counts": {}, "value": None, "fault": None}
    output = log.read_bytes()[before:].decode(errors="replace")
    if report["fault"] is not None:
        raise FaultError(report["fault"])
    return Ended(status, report["counts"], report["value"], output)


def _wait(pid: int) -> int:
    ended = False
    try:
        ended = _ended(pid, LIMIT)
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if not ended:
        raise FaultError(f"a process did not end within {LIMIT} s")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _ended(pid: int, seconds: float) -> bool:
    """Wait until a child ends, or for some seconds; return whether it has ended."""
    fd = os.pidfd_open(pid)
    try:
        poll = select.poll()  # select takes no descriptor from 1024 on
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(fd)


def _signal_in_time(pid: int, moment: Moment) -> None:
    for microseconds in (moment.at, moment.again):
        if microseconds is None or _ended(pid, microseconds / 1e6):
            return
        os.kill(pid, moment.signum)


def _be_the_child(function: Callable[[], Any], folder: Path, log: Path, report_fd: int, counter: _Counter) -> None:
    status = 1
    report: dict[str, Any] = {"counts": {}, "value": None, "fault": None}
    try:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.chdir(folder)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
        counter.begin()
        try:
            report["value"] = function()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except FaultError as fault:
            report["fault"] = str(fault)
        counter.end()
        report["counts"] = counter.counts
    except BaseException:
        traceback.print_exc()
    finally:
        with os.fdopen(report_fd, "w") as file:
            json.dump(report, file)
        os._exit(status)


class _Counter:
    """Counts the calls and the changes of files of its own process, and signals it at the moment."""

    def __init__(self, moment: Moment | None, folder: Path, calls: bool) -> None:
        self._moment = moment
        self._calls = calls
        self._folder = str(folder)
        self._is_ours: dict[CodeType, bool] = {}
        self._since = time.monotonic()
        self._active = False
        self.counts = {"call": 0, "file": 0, "time": 0}

    def begin(self) -> None:
        self._active = True
        sys.addaudithook(self._audit)
        if self._calls:
            threading.setprofile(self._profile)
            sys.setprofile(self._profile)

    def end(self) -> None:
        sys.setprofile(None)
        self._active = False
        self.counts["time"] = int((time.monotonic() - self._since) * 1e6)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            ours = self._is_ours.get(code)
            if ours is None:
                ours = self._is_ours[code] = code.co_filename.startswith(SOURCE)
            if ours:
                self._count("call")

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        changes = event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES)
        if changes and self._is_inside(arguments[0]):
            self._count("file")

    def _is_inside(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(self._folder)  # noqa: PTH100

    def _count(self, unit: Unit) -> None:
        self.counts[unit] = count = self.counts[unit] + 1
        moment = self._moment
        if moment is not None and moment.unit == unit and count in (moment.at, moment.at + (moment.again or 0)):
            os.kill(os.getpid(), moment.signum)
