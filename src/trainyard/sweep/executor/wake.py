"""Wake-up calls of workers: a number through a pipe of the agent's, which the agent passes on to its owner."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

_FORM = struct.Struct("<III")  # worker, job, place; shorter than what a pipe takes as one


@dataclass(frozen=True)
class Wake:
    """Worker's end of the pipe.

    Attributes:
        of_process: that of this process; None if it is not a worker.
    """

    fd: int
    worker: int

    of_process: ClassVar[Wake | None] = None

    def __call__(self, index: int, at: int) -> None:
        """Tell that a job of this worker's task has reached a place of its training.

        What there is to read about it has been written before.

        Args:
            index: the job's index in the task.
            at: its epoch, or iteration.
        """
        os.write(self.fd, _FORM.pack(self.worker, index, at))


def read_wakes(fd: int) -> Iterator[tuple[int, int, int]]:
    """Yield what there is in the pipe: worker, index, place."""
    yield from _FORM.iter_unpack(os.read(fd, _FORM.size * 256))
