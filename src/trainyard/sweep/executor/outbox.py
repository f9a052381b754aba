"""Messages from the head of a sweep to its agents: tasks when their files are available, and signals after their
tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from trainyard.sweep.executor.remotes import Remote
from trainyard.sweep.executor.shipping.files import HeadFiles
from trainyard.sweep.executor.task import Task
from trainyard.sweep.executor.transport import Transport

Worker = tuple[str, int]
"""The name of a worker's agent, and its number."""


class Outbox:
    """Messages to agents.

    Args:
        files: carries the files of tasks.
    """

    def __init__(self, files: HeadFiles) -> None:
        self._files = files
        self._transport: Transport | None = None
        self._unsent: dict[Worker, list[int]] = {}  # signals for workers whose files are on their way

    def open(self, transport: Transport) -> None:
        """Send over a transport from now on."""
        self._transport = transport

    def send(self, name: str, message: list[Any], payload: bytes = b"") -> None:
        """Send a message to an agent."""
        assert self._transport is not None
        self._transport.send(name, message, payload)

    def send_common(self, agent: Remote, task: Task) -> None:
        """Send an agent the data that a task shares with others, if the agent does not have it."""
        if task.common is not None and task.common.key not in agent.commons:
            self.send(agent.name, ["common", task.common.key], task.common.pickled(self._files.folders))
            agent.commons.add(task.common.key)

    def send_task(self, worker: Worker, told: Mapping[str, Any], call: bytes) -> None:
        """Send a task for a worker when its files are available.

        Args:
            worker: the worker that will run it.
            told: the message about it for its agent, in addition to the call.
            call: the call, pickled.
        """
        self._unsent[worker] = []
        self._files.begin(worker, told["roots"], partial(self._send_task, worker, told, call))

    def _send_task(self, worker: Worker, told: Mapping[str, Any], call: bytes) -> None:
        name, number = worker
        self.send(name, ["task", number, told], call)
        for signum in self._unsent.pop(worker, []):
            self.send(name, ["signal", [number], signum])

    def send_signal(self, workers: Sequence[Worker], signum: int) -> None:
        """Send a signal to workers, after their tasks."""
        of: dict[str, list[int]] = {}
        for name, number in workers:
            if (name, number) in self._unsent:
                self._unsent[name, number].append(signum)
            else:
                of.setdefault(name, []).append(number)
        for name, numbers in of.items():
            self.send(name, ["signal", numbers, signum])

    def clear(self) -> None:
        """Drop unsent messages."""
        self._unsent.clear()
