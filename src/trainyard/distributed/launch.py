"""Launcher of the ranks of one run on this machine: it starts, watches and ends them together.

In a run over several nodes, each node has a launcher; the first one has the store through which all ranks connect.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import active_children, connection, get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Literal

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, PContext, start_processes

from trainyard.distributed.rank_process import NEVER, Call, Report, run_rank
from trainyard.distributed.world import OURS
from trainyard.errors import ConfigError
from trainyard.nodes import Nodes

TICK = 0.2  # seconds
ASK = 1.0  # after a rank has ended: by now the others have noticed, or are asked for their place
GRACE = 5.0  # after which ranks are killed
MEETING = 300.0  # seconds that the other nodes wait for the first
PARTING = 20.0  # the same, if the run was interrupted and the ranks save their state

_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
_NOT_OF_TORCH = {"TORCHELASTIC_SIGNALS_TO_HANDLE": ""}  # its handler raises before it knows the started processes


@dataclass(frozen=True)
class Outcome:
    """Outcome of the ranks.

    Args:
        state: `done`, `failed` (at least one rank) or `interrupted`.
        value: the return value of the function on rank 0.
        error: the error that ended the ranks, reported once.
        trace: the traceback of a rank's error, if the error alone does not explain it.
        status: the exit status that a command should have.
        signum: the signal that this process received and passed on.
        killed: the ranks that were killed from outside.
    """

    state: str
    value: Any = None
    error: str = ""
    trace: str | None = None
    status: int = 0
    signum: int | None = None
    killed: tuple[int, ...] = ()


def launch(
    function: Callable[[Any], Any],
    argument: Any,
    devices: int,
    *,
    port: int | None = None,
    environ: Mapping[str, str] | None = None,
    where: Callable[[Sequence[FrameType]], str] | None = None,
    on_tick: Callable[[], object] = lambda: None,
    nodes: Nodes | None = None,
) -> Outcome:
    """Call a function in each of `devices` new processes, the ranks of a world (`trainyard.distributed.world.find`).

    torch's elastic multiprocessing starts them. When one fails or dies, the others end too, within `GRACE` seconds. A
    SIGINT or SIGTERM to this process, if this is its main thread, is sent to every rank as SIGTERM; a second signal
    kills the ranks. When this process is killed, the ranks end too.

    Args:
        function: defined in a module; its argument and result are pickled. A `KeyboardInterrupt` in it, or an error
            with the attribute `status` 130 or 143, is an interruption. A `TrainyardError` needs no traceback.
        argument: its argument.
        devices: the number of ranks.
        port: the port at which they connect; None finds a free port.
        environ: variables for the ranks, in addition to those of this process.
        where: describes the place of a rank from the frames of its stack, the innermost last.
        on_tick: called about every 0.2 s.
        nodes: the nodes that share these devices; this is the first of them. The others call `assist`.

    Raises:
        ConfigError: `port` is in use.
        KeyboardInterrupt: a second signal was received.
    """
    meeting = _Meeting(port, "127.0.0.1" if nodes is None else "")
    call = Call(function, argument, where)
    try:
        if nodes is not None:
            nodes.announce(meeting.port, call)
        place = _Place(meeting.port, devices, devices if nodes is None else nodes.own, alone=nodes is None)
        with _Ranks(call, place, environ or {}) as ranks:
            return ranks.watch(on_tick)
    finally:
        meeting.close()


def assist(nodes: Nodes) -> Outcome:
    """Start the ranks of this node, which is not the first, and wait for them: see `launch`.

    Raises:
        TrainyardError: the first node did not start.
        KeyboardInterrupt: a SIGTERM before the ranks were started, or the second signal.
    """
    before = signal.signal(signal.SIGTERM, _give_up)
    try:
        address, port, call = nodes.wait(MEETING)
    finally:
        signal.signal(signal.SIGTERM, before)
    with _Ranks(call, _Place(port, nodes.total, nodes.own, nodes.first, address, alone=False), {}) as ranks:
        return ranks.watch(lambda: None)


def _give_up(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(signum)


@dataclass(frozen=True)
class _Place:
    """Place of the ranks that a process starts among those of all nodes.

    Args:
        port: the port at which all ranks connect.
        total: the number of all ranks.
        own: the number of ranks that this process starts.
        first: the number of the first of these ranks.
        address: the address of the first node.
        alone: whether there is no other node.
    """

    port: int
    total: int
    own: int
    first: int = 0
    address: str = "127.0.0.1"
    alone: bool = True


class _Meeting:
    """Store through which the ranks connect. It is in this process, so it outlives each rank; it has its own port."""

    def __init__(self, port: int | None, address: str) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port or 0))
        except OSError as error:
            listener.close()
            accepted = "a free port, or null to find one"
            raise ConfigError("port", port, accepted, hint=f"{error.strerror}.") from None
        listener.listen()
        self.port: int = listener.getsockname()[1]
        self._store: TCPStore | None = TCPStore(
            "127.0.0.1", self.port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )

    def close(self) -> None:
        self._store = None


class _Ranks:
    """Processes of the ranks. Leaving the context kills the remaining ones."""

    def __init__(self, call: Call, place: _Place, environ: Mapping[str, str]) -> None:
        self.count = count = place.own
        self._first = place.first
        self._reports: dict[int, Report] = {}
        self._places: dict[int, str] = {}  # places of ranks that did not end by themselves
        self._signum: int | None = None
        self._stopped: int | None = None  # the second signal; raised by `watch`, which closes the context
        pipes = [get_context("spawn").Pipe() for _ in range(count)]
        self._pipes: list[Connection] = [ours for ours, _ in pipes]
        self._processes: list[BaseProcess] = []
        self._handlers: dict[int, Any] = {}
        envs = {rank: _environ(rank, place) for rank in range(count)}
        args = {rank: (call, rank, theirs) for rank, (_, theirs) in enumerate(pipes)}
        with (
            _silenced(),
            _signals_held(self._signalled) as self._handlers,
            _set({**_shared(place), **environ, **_NOT_OF_TORCH}),
        ):
            self._context: PContext = start_processes(
                "rank", run_rank, args, envs, DefaultLogsSpecs(log_dir=os.devnull), start_method="spawn"
            )
            children = {child.pid: child for child in active_children()}
            self._processes = [children[pid] for _, pid in sorted(self._context.pids().items())]
        for _, theirs in pipes:
            theirs.close()

    def __enter__(self) -> _Ranks:
        return self

    def __exit__(self, *error: object) -> None:
        for each, handler in self._handlers.items():
            signal.signal(each, handler)
        with _silenced():
            self._context.close(signal.SIGKILL, timeout=5)
        for pipe in self._pipes:
            pipe.close()

    def _signalled(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            self._stopped = signum
            self._kill()
            return
        self._signum = signum
        os.write(2, b"\nInterrupted: ending the ranks of this run. Interrupt again to stop immediately.\n")
        for process in self._processes:
            process.terminate()

    def watch(self, on_tick: Callable[[], object]) -> Outcome:
        """Wait for the ranks to end, and end the others when one has ended.

        Raises:
            KeyboardInterrupt: a second signal was received.
        """
        first = None  # time at which one ended before the others
        asked = False
        while True:
            on_tick()
            self._hear()
            if self._stopped is not None:
                raise KeyboardInterrupt(self._stopped)
            reports = self._reports
            if len(reports) == self.count and all(report.state == "done" for report in reports.values()):
                self._let_go()
                return Outcome("done", reports[0].value)
            ended = [report for report in reports.values() if report.state != "done"]
            if not ended:
                continue
            first = first or time.monotonic()
            spent = time.monotonic() - first
            parting = PARTING if any(report.state == "interrupted" for report in ended) else GRACE
            late = all(report.collective for report in ended) and all(rank in self._places for rank in self._missing())
            if len(reports) == self.count or spent > parting or late:
                return self._outcome()
            if spent > ASK and not asked:
                asked = True
                for rank in self._missing():
                    with suppress(OSError):
                        self._pipes[rank].send("where")

    def _missing(self) -> list[int]:
        return [rank for rank in range(self.count) if rank not in self._reports]

    def _hear(self) -> None:
        """Wait for reports, no longer than a tick; create the report of a rank that ended without one."""
        news: dict[Any, int] = {self._pipes[rank]: rank for rank in self._missing()}
        news |= {self._processes[rank].sentinel: rank for rank in self._missing()}
        for rank in {news[each] for each in connection.wait(list(news), TICK)}:
            over = not self._processes[rank].is_alive()  # read before the last look into its pipe
            with suppress(EOFError, OSError):
                while rank not in self._reports and self._pipes[rank].poll():
                    said = self._pipes[rank].recv()
                    if isinstance(said, Report):
                        self._reports[rank] = said
                    else:
                        self._places[rank] = said
            if over and rank not in self._reports:
                code = self._processes[rank].exitcode or 0
                state: Literal["killed", "failed"] = "killed" if code < 0 else "failed"
                self._reports[rank] = Report(state, time.monotonic(), error=_in_words(code))

    def _let_go(self) -> None:
        """Wait, for a limited time, for ranks that have finished their work to end."""
        deadline = threading.Timer(PARTING, self._kill)
        deadline.start()
        with _silenced():
            self._context.wait(period=0.02)
        deadline.cancel()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    def _outcome(self) -> Outcome:
        interrupted = [report for _, report in sorted(self._reports.items()) if report.state == "interrupted"]
        if self._signum is not None and interrupted:
            return Outcome("interrupted", error=interrupted[0].error, status=128 + self._signum, signum=self._signum)
        rank, cause = self._cause()
        killed = tuple(each for each, report in sorted(self._reports.items()) if report.state == "killed")
        state = "interrupted" if cause.state == "interrupted" else "failed"
        found = Outcome(state, status=cause.status or 1, signum=self._signum, killed=killed)
        if cause.state == "killed" or not cause.kind:
            return replace(found, error=f"Rank {self._first + rank} {cause.error}{self._others(rank, cause)}.")
        if cause.trace is None:
            alike = rank == 0 or (0 in self._reports and self._reports[0].error == cause.error)
            return replace(found, error=cause.error if alike else f"Rank {self._first + rank}: {cause.error}")
        lines = re.sub(r"^\[\S+:\d+\] ", "", cause.error.strip()).splitlines() or [""]  # gloo prefixes its line
        error = f"{cause.kind}: {lines[0]}".rstrip(": ").rstrip(".")
        if cause.collective and self._places:  # it waited for a rank that was busy
            late, place = min(self._places.items())
            told = f"Rank {self._first + late} kept the others waiting: it was {place}."
            return replace(found, error=f"{told} Rank {self._first + rank}: {error}.")
        place = f" {cause.place}" if cause.in_hook else ""
        return replace(found, error=f"Rank {self._first + rank} failed{place}: {error}.", trace=cause.trace)

    def _cause(self) -> tuple[int, Report]:
        """Return the report that explains the others, which fail when a rank is gone."""

        def order(entry: tuple[int, Report]) -> tuple[bool, float]:
            # The place where a rank waited in a hook is a likelier cause than the training that other ranks continued.
            report = entry[1]
            time = report.time - (NEVER if report.state == "killed" else 0.0)  # its end is noticed late
            return report.collective and not report.in_hook, time

        return min(sorted(self._reports.items()), key=order)

    def _others(self, rank: int, cause: Report) -> str:
        """Describe the place of another rank for a rank aborted by a failing communication."""
        if cause.error.endswith("SIGABRT"):
            for other, report in sorted(self._reports.items()):
                if other != rank and report.in_hook:
                    return f"; rank {self._first + other} was {report.place}"
        return ""


def _environ(rank: int, place: _Place) -> dict[str, str]:
    """Return the variables that torchrun would set."""
    return {
        OURS: str(place.first + rank),
        "RANK": str(place.first + rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(place.total),
        "LOCAL_WORLD_SIZE": str(place.own),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _shared(place: _Place) -> dict[str, str]:
    """Return variables that libraries read when they are loaded, before a rank's own code runs."""
    own = {"OMP_NUM_THREADS": str(max(1, cores() // place.own))}
    if sys.platform == "linux" and place.alone:
        own["GLOO_SOCKET_IFNAME"] = "lo"  # all ranks are on this machine, whatever its name resolves to
    return {name: value for name, value in own.items() if name not in os.environ}


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_words(code: int) -> str:
    if code >= 0:
        return f"ended with status {code} without an error message"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _signals_held(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[int, Any]]:
    """Call `handler` for each SIGINT and SIGTERM, those received during the block at its end.

    Processes started in the block block these signals until they are ready. In this process, that does not suffice: a
    signal goes to another thread, such as that of the store, and Python calls its handler in the main thread.

    Yields the previous handlers; none outside the main thread, where no signal is handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    resource_tracker.ensure_running()  # started later, it would let the signals through
    received: list[int] = []
    before: dict[int, Any] = {each: signal.getsignal(each) for each in _SIGNALS}
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        for each in _SIGNALS:
            signal.signal(each, lambda signum, frame: received.append(signum))
        yield before
        for each in _SIGNALS:
            signal.signal(each, handler)
        for signum in received:
            handler(signum, None)
    except BaseException:
        for each, previous in before.items():
            signal.signal(each, previous)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


@contextmanager
def _silenced() -> Iterator[None]:
    """Silence torch's log of its processes; this module reports them in its own messages."""
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn")]
    loggers.append(logging.getLogger("torch.distributed.elastic.multiprocessing.api"))
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
