"""Pool whose agents are processes of this machine: the real agents, without a queue."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from trainyard.sweep.executor.pool import Pool
from trainyard.sweep.executor.remote_agent import PLACE


class AgentProcesses(Pool):
    """Starts an agent as a process when one is wanted.

    Args:
        most: so many at a time at most.
        cwd: the folder that they start in.
        tells: whether it tells of agents that end; a network tells nothing.

    Attributes:
        processes: by place; those that ended are left out.
        started: how many were started.
    """

    def __init__(self, most: int, cwd: Path | None = None, *, tells: bool = True) -> None:
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.started = 0
        self.output: list[str] = []
        self._ended: dict[str, str] = {}
        self._most = most
        self._cwd = cwd
        self._tells = tells
        self._command: list[str] = []

    def start(self, command: Sequence[str]) -> bool:
        self._command = list(command)
        return False

    def want(self, count: int) -> None:
        self._collect()
        while len(self.processes) < min(count, self._most):
            place, self.started = f"p{self.started}", self.started + 1
            self.processes[place] = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env={**os.environ, PLACE: place},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def gone(self) -> dict[str, str]:
        self._collect()
        ended, self._ended = self._ended, {}
        return ended if self._tells else {}

    def _collect(self) -> None:
        for place, process in list(self.processes.items()):
            if process.poll() is not None:
                self.output.append(process.communicate()[0])
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
                self.output.append(process.communicate(timeout=10)[0])
            except subprocess.TimeoutExpired:
                process.kill()
                self.output.append(process.communicate()[0])
        self.processes.clear()
