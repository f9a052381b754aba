"""Orders of epochs on the training device, each computed while the previous epoch is served."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor


class EpochOrders:
    """Orders of epochs on a device.

    On CUDA, a thread computes the order of the next epoch, in pinned memory, while an epoch is served. An epoch
    therefore starts without waiting for a permutation or its copy. On the CPU, an order is computed on demand.

    Args:
        make: returns the order of an epoch, int64, on the CPU; it is a pure function.
        device: the device of the orders.
        ahead: whether a thread computes the next order. Default: on CUDA.
    """

    def __init__(self, make: Callable[[int], Tensor], device: torch.device, *, ahead: bool | None = None) -> None:
        self._make = make
        self._device = device
        self._pinned = device.type == "cuda"
        self._thread = ThreadPoolExecutor(1, "orders") if (self._pinned if ahead is None else ahead) else None
        self._next: tuple[int, Future[Tensor]] | None = None

    def __call__(self, epoch: int) -> Tensor:
        """Return the order of `epoch` on the device; on CUDA, the copy does not block."""
        made, self._next = self._next, None
        order = made[1].result() if made is not None and made[0] == epoch else self._on_host(epoch)
        if self._thread is not None:
            self._next = epoch + 1, self._thread.submit(self._on_host, epoch + 1)
        return order.to(self._device, non_blocking=True)

    def _on_host(self, epoch: int) -> Tensor:
        order = self._make(epoch)
        return order.pin_memory() if self._pinned else order
