"""Reading of the next rows of an epoch: with a custom kernel if available, otherwise with torch's functions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from trainyard._fast_paths import fast_paths
from trainyard.errors import first_line

log = logging.getLogger(__name__)

DEVICES = ("cuda",)
"""Types of devices on which the kernel is used."""


@dataclass(frozen=True)
class RowTable:
    """Rows of the batches of an epoch, and the number of the next batch.

    Attributes:
        rows: `[batches, n]`, of the dtype of the loader's orders (int64).
        counter: `[1]`, of the same dtype, the number of the next batch.
        arrived: int32 `[1]`, 0 except while the kernel runs.
    """

    rows: Tensor
    counter: Tensor
    arrived: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> RowTable:
        """Return a table at batch 0."""
        return cls(rows, rows.new_zeros(1), rows.new_zeros(1, dtype=torch.int32))


Take = Callable[[Sequence[Tensor], RowTable, int], tuple[Tensor, ...]]


def take_rows(tensors: Sequence[Tensor], table: RowTable, count: int) -> tuple[Tensor, ...]:
    """Return the first `count` rows of the next batch from each of `tensors`, and advance the counter.

    Nothing synchronizes with the device, and all numbers are read on the device, so that a captured CUDA graph reads
    the next batch at each replay. The kernel needs one launch; torch's functions need two, plus one for each tensor.
    """
    take = _kernel(table.rows.device)
    return take_by_torch(tensors, table, count) if take is None else take(tensors, table, count)


def take_by_torch(tensors: Sequence[Tensor], table: RowTable, count: int) -> tuple[Tensor, ...]:
    """Do the same as `take_rows` with torch's functions."""
    indices = table.rows.index_select(0, table.counter)[0, :count]
    table.counter.add_(1)
    return tuple(tensor.index_select(0, indices) for tensor in tensors)


def _kernel(device: torch.device) -> Take | None:
    return _working(device) if device.type in DEVICES and fast_paths() else None


@cache
def _working(device: torch.device) -> Take | None:
    """Return the function that launches the kernel, if its results on `device` equal those of torch; otherwise, log the
    reason."""
    try:
        from trainyard.step.cuda_graph import take_kernel
    except ImportError as error:
        log.info(
            "Captured steps gather their batches with several kernels, because Triton cannot be imported: %s.", error
        )
        return None
    try:
        reason = None if take_kernel.works_on(device) else "the kernel returns other rows"
    except Exception as error:  # no compiler, a device that Triton does not know, another version of its language
        reason = first_line(error).rstrip(".")
    if reason is None:
        return take_kernel.take
    log.warning(
        "Captured steps gather their batches with several kernels, because the Triton kernel does not work: %s.", reason
    )
    return None
