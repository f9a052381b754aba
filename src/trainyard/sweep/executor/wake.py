"""Connections between a worker and the owner of its agent: wake-up calls, and a line for messages in both directions.

A wake-up call is a number through a pipe of the agent, which the agent passes on to its owner. The ranks of a wide
job are processes that its worker spawns. They inherit the pipe: `Wake` is pickled with its file.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, reduction
from typing import Any, ClassVar

_FORM = struct.Struct("<III")  # worker, job, place; shorter than what a pipe takes as one


@dataclass(frozen=True)
class Wake:
    """Worker's end of the pipe.

    Attributes:
        of_process: the object of this process; None if it is not a worker.
    """

    fd: int
    worker: int

    of_process: ClassVar[Wake | None] = None

    def __reduce__(self) -> tuple[Callable[[Any, int], Wake], tuple[Any, int]]:
        return _inherited, (reduction.DupFd(self.fd), self.worker)

    def __call__(self, index: int, at: int) -> None:
        """Report that a job of this worker's task has reached a position in its training.

        The files about it have already been written.

        Args:
            index: the job's index in the task.
            at: its epoch, or iteration.
        """
        os.write(self.fd, _FORM.pack(self.worker, index, at))


class LineClosedError(Exception):
    """The other end of a line is gone."""


class Line:
    """Worker's end of a line to the owner of its agent. Messages come in order, each once.

    Args:
        end: a packet socket, whose other end belongs to the agent.

    Attributes:
        of_process: the object of this process; None if it is not a worker.
    """

    of_process: ClassVar[Line | None] = None

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def say(self, message: Any) -> None:
        """Send plain data, of at most 60 kB as JSON."""
        self._end.send(json.dumps(message).encode())

    def is_ready(self) -> bool:
        """Return whether there is an answer, or no more answers will come."""
        return bool(connection.wait([self._end], 0))

    def hear(self, timeout: float) -> bytes | None:
        """Return the next answer; None if there is none within `timeout` seconds.

        Raises:
            LineClosedError: no more answers will come.
        """
        if not connection.wait([self._end], timeout):
            return None
        packet, files, _, _ = socket.recv_fds(self._end, 1, 1)
        if not packet:
            raise LineClosedError
        with open(files[0], "rb") as file:  # noqa: PTH123 (a descriptor)
            file.seek(0)
            return file.read()


def _inherited(file: Any, worker: int) -> Wake:
    return Wake(file.detach(), worker)


def read_wakes(fd: int) -> Iterator[tuple[int, int, int]]:
    """Yield the content of the pipe: worker, index, place."""
    yield from _FORM.iter_unpack(os.read(fd, _FORM.size * 256))
