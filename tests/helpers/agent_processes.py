"""Pool whose agents are processes of this machine: the real agents, without a queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from trainyard.sweep.executor.pool import Pool
from trainyard.sweep.executor.remote_agent import PLACE
from trainyard.sweep.executor.shipping.home import HomeFiles
from trainyard.sweep.executor.shipping.node import CODE as NODE


class AgentProcesses(Pool):
    """Starts an agent as a process when one is wanted.

    Args:
        most: so many at a time at most.
        cwd: the folder that they start in.
        tells: whether it tells of agents that end; a network tells nothing.
        files: starts them as on nodes that do not see the head's folders; `cwd` has the code then.

    Attributes:
        processes: by place; those that ended are left out.
        started: how many were started.
        looks: how often it was asked to look which have ended.
    """

    def __init__(
        self, most: int, cwd: Path | None = None, *, tells: bool = True, files: HomeFiles | None = None
    ) -> None:
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.started = self.looks = 0
        self.output: list[str] = []
        self._ended: dict[str, str] = {}
        self._most = most
        self._cwd = cwd
        self._tells = tells
        self._files = files
        self._told = ""
        self._command: list[str] = []

    def start(self, command: Sequence[str]) -> bool:
        self._command = list(command)
        if self._files is not None:
            self._command = [sys.executable, "-c", NODE, *self._files.path()]
            self._told = self._files.told_to_nodes()
        return False

    def want(self, count: int) -> None:
        self._collect()
        while len(self.processes) < min(count, self._most):
            place, self.started = f"p{self.started}", self.started + 1
            self.processes[place] = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env={**os.environ, PLACE: place},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            stdin = self.processes[place].stdin
            assert stdin is not None
            stdin.write(self._told)
            stdin.close()

    def gone(self) -> dict[str, str]:
        self._collect()
        ended, self._ended = self._ended, {}
        return ended if self._tells else {}

    def look(self) -> None:
        self.looks += 1

    def _collect(self) -> None:
        for place, process in list(self.processes.items()):
            if process.poll() is not None:
                self.output.append(_output(process))
                self._ended[place] = f"its process ended with {process.returncode}"
                del self.processes[place]

    def arrived(self, place: str) -> None:
        pass

    def kill(self, place: str, signum: int = signal.SIGKILL) -> None:
        """Send a signal to an agent alone."""
        os.kill(self.processes[place].pid, signum)

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()  # those that have not met the head
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            self.output.append(_output(process))
        self.processes.clear()


def _output(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with process.stdout:
        text = process.stdout.read()
    process.wait()
    return text
