"""The agent (the fork server) as its owner sees it: a handle on the process of `agent_process.py`."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing import connection
from typing import Any, BinaryIO

from trainyard.errors import TrainyardError
from trainyard.host_memory import tunables
from trainyard.sweep.executor.agent_process import PACKET

_CODE = (
    "import sys; fd, preload, *sys.path = sys.argv[1:]; from trainyard.sweep.executor.agent_process import serve; "
    "serve(int(fd), preload.split())"
)


class ExecutorError(TrainyardError):
    """The executor cannot start its workers."""

    status = 1


class AgentEndedError(Exception):
    """The agent's process is gone, and its workers with it."""


class Agent:
    """Starts an agent. Returns at once; `ready` is set when the agent has said so.

    Args:
        preload: modules to import before the first fork. They must not touch CUDA, nor start threads.
        threads: threads that libraries which size their pools when they are loaded may use.
    """

    def __init__(self, preload: Sequence[str], threads: int) -> None:
        self._preload = " ".join(preload)
        self._threads = str(threads)
        self._numbers = itertools.count()
        self._pids: dict[int, int] = {}  # by worker
        self._launch()

    def _launch(self) -> None:
        self.ready = False
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (what it says when it cannot start)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *_flags(), "-c", _CODE, str(theirs.fileno()), self._preload, *map(str, sys.path)],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env=self._environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for its owner
            )

    def _environment(self) -> dict[str, str]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), self._threads)
        return {**os.environ, **threads, "GLIBC_TUNABLES": tunables(os.environ)}

    def fork(self, task: BinaryIO, report: BinaryIO) -> int:
        """Asks for a worker. Returns its number here; `["forked", number, pid]` or `["refused", …]` follows."""
        worker = next(self._numbers)
        try:
            socket.send_fds(self._socket, [json.dumps(["fork", worker]).encode()], [task.fileno(), report.fileno()])
        except ConnectionError as error:
            raise AgentEndedError from error
        return worker

    def send_signal(self, workers: Iterable[int], signum: int) -> None:
        """Sends a signal to workers: SIGKILL to all that they have started, too."""
        with suppress(ConnectionError):  # then they are gone, as receive() will say
            self._socket.send(json.dumps(["signal", list(workers), signum]).encode())

    def receive(self, timeout: float) -> list[Any] | None:
        """The agent's next message; None where it says nothing for `timeout` seconds."""
        if not connection.wait([self._socket], timeout):
            return None
        try:
            packet = self._socket.recv(PACKET)
        except ConnectionError as error:
            raise AgentEndedError from error
        if not packet:
            raise AgentEndedError
        message: list[Any] = json.loads(packet)
        match message:
            case ["ready"]:
                self.ready = True
            case ["forked", worker, pid]:
                self._pids[worker] = pid
            case ["ended", worker, _]:
                del self._pids[worker]
        return message

    def restart(self) -> str:
        """Starts another agent after this one ended. Returns how it ended.

        Raises:
            ExecutorError: it was not yet ready, and the next would do no better.
        """
        ready = self.ready
        self._socket.close()
        self._process.kill()  # it has closed its end: it is about to be gone, if it is not yet
        self._process.wait()
        self._kill_orphans()
        how = in_words(self._process.returncode)
        with self._output as output:
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()
        if not ready:
            last = f": {said[-1]}" if said else ""
            raise ExecutorError(f"The process that workers are forked from {how} before it was ready{last}.")
        self._launch()
        return how

    def close(self, timeout: float = 1.0) -> None:
        """Kills all workers, with all that they have started, and ends the agent."""
        self._socket.close()
        self._output.close()
        if not self.ready:  # busy with its imports, and without workers
            self._process.kill()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._kill_orphans()

    def _kill_orphans(self) -> None:
        """Kills what the agent left behind: workers have asked the kernel to die with it, but not their children."""
        for pid in self._pids.values():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._pids.clear()


def in_words(status: int) -> str:
    """What a process did that ended with this status."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _flags() -> list[str]:
    """The interpreter's flags (`-O`, `-W`, `-X`), for another one like it."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # as multiprocessing does
    return flags
