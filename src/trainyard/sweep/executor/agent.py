"""Handle on the agent, the fork server of `agent_process.py`, for the process that owns it."""

from __future__ import annotations

import itertools
import json
import math
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

from trainyard.errors import ConfigError, TrainyardError
from trainyard.host_memory import tunables
from trainyard.sweep.executor.agent_process import PACKET

_CODE = (
    "import sys; fd, preload, patience, *sys.path = sys.argv[1:]; "
    "from trainyard.sweep.executor.agent_process import serve; serve(int(fd), preload.split(), float(patience))"
)

_EXIT = 1.0
"""Maximum number of seconds between the moment at which an agent closes its socket and its exit."""


class ExecutorError(TrainyardError):
    """The executor cannot start its workers."""

    status = 1


class AgentEndedError(Exception):
    """The agent's process has ended, and its workers with it."""


class Agent:
    """Starts an agent, without waiting for it; `ready` is set when the agent reports that it is.

    Args:
        preload: modules to import before the first fork. They must not touch CUDA or start threads.
        threads: number of threads for libraries that size their pools when they are loaded.
        patience: the number of seconds after which an agent that is not used ends itself.
    """

    def __init__(self, preload: Sequence[str], threads: int, patience: float = math.inf) -> None:
        self._patience = str(patience)
        self._preload = " ".join(preload)
        self._threads = str(threads)
        self._began_with: tuple[list[str], dict[str, str]] = ([], {})
        self._numbers = itertools.count()
        self._pids: dict[int, int] = {}  # by worker
        self._launch()

    def _launch(self) -> None:
        self.ready = False
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (what it says when it cannot start)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._began_with = self._settings()
        path, environment = self._began_with
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *_flags(), "-c", _CODE, str(theirs.fileno()), self._preload, self._patience, *path],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is handled by its owner
            )

    def keep(self) -> None:
        """Use this agent: it does not end itself any more."""
        self._patience = str(math.inf)
        self.send_signal([], 0)

    def is_like(self, preload: Sequence[str], threads: int) -> bool:
        """Return whether this agent runs, and one with these arguments that started now would be like it."""
        same = self._process.poll() is None and (self._preload, self._threads) == (" ".join(preload), str(threads))
        return same and self._began_with == self._settings()

    def _settings(self) -> tuple[list[str], dict[str, str]]:
        """Return the path and the environment of an agent that starts now."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), self._threads)
        # torch.cuda.is_available() then counts devices without initializing CUDA, which forked processes could not use.
        nvml = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        environment = {**os.environ, **threads, **nvml, "GLIBC_TUNABLES": tunables(os.environ)}
        return [*map(str, sys.path)], environment

    def fork(self, task: BinaryIO, report: BinaryIO) -> int:
        """Ask for a worker and return its number; `["forked", number, pid]` or `["refused", …]` follows."""
        worker = next(self._numbers)
        try:
            socket.send_fds(self._socket, [json.dumps(["fork", worker]).encode()], [task.fileno(), report.fileno()])
        except ConnectionError as error:
            raise AgentEndedError from error
        return worker

    def answer(self, worker: int, content: BinaryIO) -> None:
        """Send the content of a file through the line of a worker."""
        with suppress(ConnectionError):  # the agent is gone: receive() reports it
            socket.send_fds(self._socket, [json.dumps(["answer", worker]).encode()], [content.fileno()])

    def send_signal(self, workers: Iterable[int], signum: int) -> None:
        """Send a signal to workers; SIGKILL also goes to all processes that they have started."""
        with suppress(ConnectionError):  # the agent is gone: receive() reports it
            self._socket.send(json.dumps(["signal", list(workers), signum]).encode())

    def receive(self, timeout: float) -> list[Any] | None:
        """Return the agent's next message; None if there is none within `timeout` seconds."""
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
            case ["ended", worker, *_]:
                del self._pids[worker]
        return message

    def fileno(self) -> int:
        """Return a descriptor that can be read when there is a message."""
        return self._socket.fileno()

    def restart(self) -> str:
        """Start another agent after this one ended, and return how it ended.

        Raises:
            ExecutorError: the agent ended before it was ready; another one would fail too.
        """
        ready = self.ready
        self._socket.close()
        try:  # it has closed its end and is about to exit; a signal would replace its status
            self._process.wait(_EXIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._kill_orphans()
        how = in_words(self._process.returncode)
        with self._output as output:
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()
        if not ready:
            last = f": {said[-1].rstrip('.')}" if said else ""
            raise ExecutorError(f"The fork server {how} before it was ready{last}.")
        self._launch()
        return how

    def close(self, timeout: float = 1.0) -> None:
        """Kill all workers, with all processes that they have started, and end the agent."""
        self._socket.close()
        self._output.close()
        if not self.ready:  # it is still importing, and has no workers
            self._process.kill()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._kill_orphans()

    def _kill_orphans(self) -> None:
        """Kill children of workers that the agent left; workers die with the agent, but their children do not."""
        for pid in self._pids.values():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._pids.clear()


def not_preloaded(module: str, error: str, node: str = "") -> ConfigError:
    """Return the error about a module that cannot be imported before workers are forked.

    Args:
        module: its name.
        error: the reason.
        node: the machine; empty for this one.
    """
    hint = f"{f'On {node}: ' if node else ''}{error.rstrip('.')}."
    return ConfigError("preload", module, "a module whose import succeeds and does not initialize CUDA", hint=hint)


def in_words(status: int) -> str:
    """Describe how a process ended, from its exit status."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _flags() -> list[str]:
    """Return the interpreter's flags (`-O`, `-W`, `-X`), to start another one like it."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # as multiprocessing does
    return flags
