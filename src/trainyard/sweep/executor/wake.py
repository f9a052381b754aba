"""Wake-up calls of workers: a number through a pipe of the agent's, which the agent passes on to its owner.

The ranks of a wide job are processes that its worker spawns. They inherit the pipe: `Wake` is pickled with its file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any, ClassVar

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

    def __reduce__(self) -> tuple[Callable[[Any, int], Wake], tuple[Any, int]]:
        return _inherited, (reduction.DupFd(self.fd), self.worker)

    def __call__(self, index: int, at: int) -> None:
        """Tell that a job of this worker's task has reached a place of its training.

        What there is to read about it has been written before.

        Args:
            index: the job's index in the task.
            at: its epoch, or iteration.
        """
        os.write(self.fd, _FORM.pack(self.worker, index, at))


def _inherited(file: Any, worker: int) -> Wake:
    return Wake(file.detach(), worker)


def read_wakes(fd: int) -> Iterator[tuple[int, int, int]]:
    """Yield what there is in the pipe: worker, index, place."""
    yield from _FORM.iter_unpack(os.read(fd, _FORM.size * 256))
