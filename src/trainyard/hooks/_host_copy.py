"""Host copies: copies of a state in reusable host memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from trainyard.distributed.shares import has_share, local, on_host

# Below this size, a fresh copy of a CPU tensor costs no more.
_SMALL = 1 << 14
_Kind = tuple[torch.dtype, torch.Size, tuple[int, ...], bool]
_Lent = tuple[_Kind, Tensor]


class HostCopy:
    """A copied state, whose tensors no longer change.

    Copies from a GPU may still be in progress when this object is returned: call `wait` before use, and `release` at
    the end.
    """

    def __init__(self, state: dict[str, Any], lent: list[_Lent], events: Sequence[Any], home: HostBuffers) -> None:
        self.state = state
        self._lent = lent
        self._events = events
        self._home = home

    def wait(self) -> None:
        """Wait until all copies have finished."""
        for event in self._events:
            event.synchronize()

    def release(self) -> None:
        """Release the memory; `state` must not be read afterwards."""
        self.wait()
        lent, self._lent = self._lent, []
        self._home.take_back(lent)


class HostBuffers:
    """Reusable memory for copies of states: most of the cost of a fresh copy is the first touch of its pages.

    A tensor on a GPU is copied into pinned memory, in stream order: the host does not wait for it. The buffers keep as
    much memory as all copies in use at one time needed.
    """

    def __init__(self) -> None:
        self._free: defaultdict[_Kind, list[Tensor]] = defaultdict(list)
        self._lock = Lock()

    def copy(self, state: dict[str, Any]) -> HostCopy:
        """Copy a nest of dicts, lists and tuples with every tensor in it."""
        lent: list[_Lent] = []
        devices: set[torch.device] = set()
        copied = self._copied(state, lent, devices)
        # Each copy is in the order of its own device's stream, which need not be the current device.
        events = [torch.cuda.current_stream(device).record_event() for device in devices]
        return HostCopy(copied, lent, events, self)

    def reserve(self, state: Any) -> None:
        """Allocate memory for a copy of this state. Only shapes are read, so another thread may call it."""
        fresh = [(_kind(tensor), _new(tensor)) for tensor in _tensors(state) if _pooled(tensor)]
        for _, buffer in fresh:
            buffer.zero_()
        self.take_back(fresh)

    def take_back(self, lent: list[_Lent]) -> None:
        """Take back buffers for reuse."""
        with self._lock:
            for kind, buffer in lent:
                self._free[kind].append(buffer)

    def _copied(self, value: Any, lent: list[_Lent], devices: set[torch.device]) -> Any:
        if has_share(value):
            return on_host(self._copied(local(value), lent, devices), value)
        if isinstance(value, Tensor):
            if not _pooled(value):
                return value.detach().to("cpu", copy=True)
            kind = _kind(value)
            buffer = self._take(kind, value)
            buffer.copy_(value.detach(), non_blocking=True)
            lent.append((kind, buffer))
            if value.is_cuda:
                devices.add(value.device)
            return buffer
        if isinstance(value, dict):
            return {key: self._copied(entry, lent, devices) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copied(entry, lent, devices) for entry in value)
        return value

    def _take(self, kind: _Kind, tensor: Tensor) -> Tensor:
        with self._lock:
            if self._free[kind]:
                return self._free[kind].pop()
        return _new(tensor)


def _pooled(tensor: Tensor) -> bool:
    # Small GPU tensors too: a blocking copy would wait for all work queued on the device.
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
