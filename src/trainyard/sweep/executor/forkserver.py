"""The fork server as its owner sees it: a handle on the process that `server.py` runs in."""

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
from typing import Any, BinaryIO

from trainyard.sweep.executor.server import PACKET

_CODE = (
    "import sys; fd, preload, *sys.path = sys.argv[1:]; from trainyard.sweep.executor.server import serve; "
    "serve(int(fd), preload.split())"
)


class ServerEndedError(Exception):
    """The server's process is gone, and its workers with it."""


class ForkServer:
    """Starts a fork server. Returns at once; the server says `["ready"]` when it is.

    Args:
        preload: modules to import before the first fork. They must not touch CUDA, nor start threads.
        threads: threads that libraries which size their pools when they are loaded may use.
    """

    def __init__(self, preload: Sequence[str], threads: int) -> None:
        self.ready = False
        self._numbers = itertools.count()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (what it says when it cannot start)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, str(theirs.fileno()), " ".join(preload), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for its owner
            )

    def fork(self, task: BinaryIO, report: BinaryIO) -> int:
        """Asks for a worker. Returns its number here; `["forked", number, pid]` or `["refused", …]` follows."""
        worker = next(self._numbers)
        try:
            socket.send_fds(self._socket, [json.dumps(["fork", worker]).encode()], [task.fileno(), report.fileno()])
        except ConnectionError as error:
            raise ServerEndedError from error
        return worker

    def signal(self, workers: Iterable[int], signum: int) -> None:
        """Sends a signal to workers: SIGKILL to all that they have started, too."""
        with suppress(ConnectionError):  # then they are gone, as receive() will say
            self._socket.send(json.dumps(["signal", list(workers), signum]).encode())

    def receive(self, timeout: float) -> list[Any] | None:
        """The server's next message; None where it says nothing for `timeout` seconds."""
        self._socket.settimeout(max(timeout, 1e-3))  # 0 would mean something else
        try:
            packet = self._socket.recv(PACKET)
        except TimeoutError:
            return None
        except ConnectionError as error:
            raise ServerEndedError from error
        finally:
            self._socket.settimeout(None)
        if not packet:
            raise ServerEndedError
        message: list[Any] = json.loads(packet)
        self.ready = self.ready or message == ["ready"]
        return message

    def close(self, timeout: float = 1.0) -> str:
        """Kills all workers and all that they have started, and ends the server.

        Returns:
            How the server ended and the last that it said.
        """
        self._socket.close()
        try:
            if not self.ready:  # busy with its imports: it has no workers
                self._process.kill()
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()  # and so, by their own wish, its workers
            self._process.wait()
        if self._output.closed:
            return ""
        with self._output as output:
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()
        return "; ".join([ended(self._process.returncode), *said[-1:]])


def ended(status: int) -> str:
    """What an exit status means, in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
