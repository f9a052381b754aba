"""Hooks with which the tests of ranks go wrong."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from trainyard.hooks import Hook


class Slow(Hook):
    """Every rank takes so many seconds more for an iteration."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.seconds = seconds

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        time.sleep(self.seconds)


class Wrong(Hook):
    """One rank does this at one iteration, once.

    Args:
        impatient: at this iteration the ranks' patience with one another ends a hundred times sooner than
            `strategy.timeout`, which has to suffice for a busy machine until then.
    """

    def __init__(self, what: Any, at: int = 20, rank: int = 1, once: Any = None, impatient: bool = False) -> None:
        self.impatient = impatient
        self.what, self.at, self.rank = what, at, rank
        self.once = None if once is None else Path(once)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        if runner.iter == self.at and self.impatient:
            timeout = dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout
            distributed_c10d._set_pg_timeout(timeout / 100, dist.group.WORLD)
        if runner.iter != self.at or runner.strategy.rank != self.rank:
            return
        if self.once is not None:
            if self.once.exists():
                return
            self.once.touch()
        if self.what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.what == "raise":
            raise ValueError("boom")
        elif self.what == "sleep":
            time.sleep(1000)
        elif self.what == "barrier":
            dist.barrier()
