"""Host copies: copies of a state, in memory of the host that is used again."""

from __future__ import annotations

from collections import defaultdict
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from trainyard.distributed.shares import has_share, local, on_host

# CPU tensors below this size cost no more as fresh copies.
_SMALL = 1 << 14
_Kind = tuple[torch.dtype, torch.Size, tuple[int, ...], bool]
_Lent = tuple[_Kind, Tensor]


class HostCopy:
    """A state whose tensors no longer change.

    What lies on a GPU may be still on its way when the copy is handed out: `wait` first, and `release` it at the end.
    """

    def __init__(self, state: dict[str, Any], lent: list[_Lent], event: Any, home: HostBuffers) -> None:
        self.state = state
        self._lent = lent
        self._event = event
        self._home = home

    def wait(self) -> None:
        """Return when everything has arrived."""
        if self._event is not None:
            self._event.synchronize()

    def release(self) -> None:
        """Give the memory back; `state` must not be read from here on."""
        self.wait()
        lent, self._lent = self._lent, []
        self._home.take_back(lent)


class HostBuffers:
    """Memory for copies of states, used again: most of what a fresh copy costs is the first touch of its pages.

    The copy of a tensor on a GPU goes into pinned memory, in the order of the stream: the host does not wait for it.
    As much memory stays as the copies that were out at the same time needed.
    """

    def __init__(self) -> None:
        self._free: defaultdict[_Kind, list[Tensor]] = defaultdict(list)
        self._lock = Lock()

    def copy(self, state: dict[str, Any]) -> HostCopy:
        """Return the same nest of dicts, lists and tuples with every tensor copied."""
        lent: list[_Lent] = []
        copied = self._copied(state, lent)
        event = torch.cuda.current_stream().record_event() if any(kind[-1] for kind, _ in lent) else None
        return HostCopy(copied, lent, event, self)

    def reserve(self, state: Any) -> None:
        """Have memory ready for a copy of this; only shapes are read, so that another thread may do it."""
        fresh = [(_kind(tensor), _new(tensor)) for tensor in _tensors(state) if _pooled(tensor)]
        for _, buffer in fresh:
            buffer.zero_()
        self.take_back(fresh)

    def take_back(self, lent: list[_Lent]) -> None:
        """Take back buffers, to be used again."""
        with self._lock:
            for kind, buffer in lent:
                self._free[kind].append(buffer)

    def _copied(self, value: Any, lent: list[_Lent]) -> Any:
        if has_share(value):
            return on_host(self._copied(local(value), lent), value)
        if isinstance(value, Tensor):
            if not _pooled(value):
                return value.detach().to("cpu", copy=True)
            kind = _kind(value)
            buffer = self._take(kind, value)
            buffer.copy_(value.detach(), non_blocking=True)
            lent.append((kind, buffer))
            return buffer
        if isinstance(value, dict):
            return {key: self._copied(entry, lent) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copied(entry, lent) for entry in value)
        return value

    def _take(self, kind: _Kind, tensor: Tensor) -> Tensor:
        with self._lock:
            if self._free[kind]:
                return self._free[kind].pop()
        return _new(tensor)


def _pooled(tensor: Tensor) -> bool:
    # A small tensor on a GPU too: alone, each would wait for all that the device has still to do.
    return tensor.is_cuda or (tensor.device.type == "cpu" and tensor.nbytes >= _SMALL)


def _kind(tensor: Tensor) -> _Kind:
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.is_cuda


def _new(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [local(value)]
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for entry in entries for tensor in _tensors(entry)]
