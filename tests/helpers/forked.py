"""Programs in processes forked from one that has torch, trainyard and mlflow imported, at next to no cost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, Self

from forking import asked, can_be

ROOT = Path(__file__).parents[2]
MODULES = (
    "torch",
    "numpy.random",
    "sklearn.datasets",
    "trainyard.command",
    "trainyard.hooks",
    "trainyard.run.record",
    "trainyard.run.trial",
    "trainyard.fused.runner",
    "trainyard.distributed.launch",
    "mlflow.pytorch",
    "trainyard.track.shipper.fleet",
)


class Forked:
    """A process, with the interface of `subprocess.Popen` as far as tests need it: text, and pipes.

    What only the start of an interpreter can do (flags, PYTHON… variables, `sitecustomize`) takes a process of
    `subprocess`.

    Args:
        spares: how many of the Python processes that it starts itself are forked, too.
        starts: a file that gets a line for each process that it and these start, with its command.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: str | Path = ".",
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        start_new_session: bool = False,
        spares: int = 3,
        starts: Path | None = None,
    ) -> None:
        command = [str(argument) for argument in command]
        env = os.environ if env is None else env
        assert command[0] == sys.executable
        assert can_be(command, env), f"{command} has to be started"
        request = asked(command, env, str(Path(cwd).absolute()), start_new_session, [0, 1, 2])
        request |= {"spares": spares, "starts": starts and str(starts)}
        self.args = command
        self.returncode: int | None = None
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours: list[IO[str] | None] = []
        self.stdin: IO[str] | None = None
        assert stdin in (None, subprocess.PIPE)
        if stdin == subprocess.PIPE:
            reads, writes = os.pipe()
            self.stdin = os.fdopen(writes, "w", encoding="utf-8", buffering=1)
            fds = [reads]
        else:
            fds = [os.open(os.devnull, os.O_RDONLY)]
        for number, target in enumerate((stdout, stderr), 1):
            if target == subprocess.PIPE:
                reads, writes = os.pipe()
                ours.append(os.fdopen(reads, encoding="utf-8"))
                fds.append(writes)
            else:
                assert target in (None, subprocess.STDOUT)
                ours.append(None)
                fds.append(os.dup(number if target is None else fds[1]))
        self.stdout, self.stderr = ours
        socket.send_fds(_server(), [json.dumps(request).encode()], [*fds, theirs.fileno()])
        theirs.close()
        for fd in fds:
            os.close(fd)
        self.pid = int(self._channel.recv(32))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.stdout, self.stderr):
            if file is not None:
                file.close()
        self._close_input()
        self.wait()

    def _close_input(self) -> None:
        if self.stdin is not None:
            with suppress(BrokenPipeError):
                self.stdin.close()

    def poll(self) -> int | None:
        with suppress(BlockingIOError):
            self._receive(socket.MSG_DONTWAIT)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._channel.settimeout(timeout)
            try:
                self._receive()
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
        assert self.returncode is not None
        return self.returncode

    def _receive(self, flags: int = 0) -> None:
        if self.returncode is None:
            self.returncode = int(self._channel.recv(32, flags))
            self._channel.close()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read all that it says until it ends."""
        said = ["", ""]
        self._close_input()

        def read(number: int, file: IO[str]) -> None:
            with file:
                said[number] = file.read()

        files = [(number, file) for number, file in enumerate((self.stdout, self.stderr)) if file and not file.closed]
        threads = [threading.Thread(target=read, args=each, daemon=True) for each in files]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return said[0], said[1]

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(command: Sequence[str], timeout: float | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, like `subprocess.run` with `capture_output` and `text`."""
    process = Forked(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    try:
        out, err = process.communicate(timeout)
    except BaseException:
        process.kill()
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@cache
def _server() -> socket.socket:
    """Start the fork server of this process; it ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forking.py")), str(theirs.fileno()), *MODULES],
            stdin=subprocess.DEVNULL,
            # Without the thread of pyarrow's allocator, which no forked process would have.
            env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "JE_ARROW_MALLOC_CONF": "background_thread:false"},
            pass_fds=[theirs.fileno()],
        )
    return ours
