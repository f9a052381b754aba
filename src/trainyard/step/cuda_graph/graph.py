"""Capture and replay of a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from trainyard import rng_state
from trainyard._torch_internals import end_allocation
from trainyard.errors import TrainyardError, first_line

T = TypeVar("T")

SYNCHRONISES = "called a synchronizing CUDA operation"
"""Part of torch's warning, in mode "warn", about an operation that waits for the device."""
PROTOTYPE = "Synchronization debug mode is a prototype"
"""Part of torch's warning about that mode."""


class Uncapturable(TrainyardError):  # noqa: N818 - a finding, not an error: the step is run normally
    """The work cannot be recorded and was not done; the message gives the reason."""


class Graph(Protocol):
    """Interface that records work on a device.

    Recorded work reads and writes the same memory at every replay; numbers that are not in tensors on the device keep
    their values. Everything that persists between two replays must be created outside `capture`.
    """

    def warm_up(self, function: Callable[[], T]) -> tuple[T, str | None]:
        """Run `function` before it is recorded, in the same way as it will be recorded.

        Returns:
            Its result, and the reason why it cannot be recorded; None if it can.
        """

    def capture(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Record the work of `function` without doing it.

        Returns:
            A function that does the work, and the result of `function`, whose tensors contain the values of the latest
            replay.

        Raises:
            Uncapturable: it cannot be recorded.
        """

    def forget(self) -> None:
        """Stop replaying the recorded work; its memory is freed with the last of its tensors."""


class CudaGraph:
    """CUDA graphs on one device, which share a memory pool and are recorded on a separate stream.

    As torch's notes on CUDA graphs require, work is run on this stream before it is recorded, so that objects that are
    created lazily (cuBLAS's workspaces, the choice of algorithms, the state of an optimizer) are created then, outside
    the memory of graphs.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self._index = index
        self._stream = _capture_stream(index)
        self.forget()
        self._generator = torch.cuda.default_generators[index]

    def warm_up(self, function: Callable[[], T]) -> tuple[T, str | None]:
        drawn, mode = _drawn_on_cpu(), torch.cuda.get_sync_debug_mode()
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = function()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        current.wait_stream(self._stream)
        reason = None
        for warning in told:
            if SYNCHRONISES in str(warning.message):
                reason = f"the code waits for the device ({Path(warning.filename).name}, line {warning.lineno})"
            elif PROTOTYPE not in str(warning.message):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if reason is None and drawn != _drawn_on_cpu():
            reason = "the code draws random numbers on the CPU"
        return result, reason

    def capture(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        graph = torch.cuda.CUDAGraph()
        generators = [self._generator, *rng_state.further(self._stream.device)]
        states = [generator.clone_state() for generator in generators]
        for generator in generators[1:]:  # the graph knows the device's own
            graph.register_generator_state(generator)
        torch.cuda.synchronize(self._stream.device)
        torch.cuda.empty_cache()  # frees memory for the pool
        try:
            with torch.cuda.stream(self._stream):
                # thread_local: other threads pin memory and copy batches meanwhile.
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    result = function()
                except BaseException:
                    self._abandon(graph)
                    raise
                try:
                    graph.capture_end()
                except BaseException:
                    end_allocation(self._index, self._pool)
                    raise
        except Exception as error:
            # A generator may take the capture for active; this copy of its state has none.
            for generator, state in zip(generators, states, strict=True):
                generator.graphsafe_set_state(state)
            raise Uncapturable(first_line(error).rstrip(".")) from error
        return graph.replay, result

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            graph.capture_end()
        except RuntimeError:  # it repeats what made the capture invalid
            end_allocation(self._index, self._pool)

    def forget(self) -> None:
        # torch does not reuse a pool whose graphs are gone while a tensor of it is alive.
        self._pool = torch.cuda.graph_pool_handle()


def _drawn_on_cpu() -> list[bytes]:
    """Return the states of torch's generators on the CPU, which are equal if nothing was drawn in between."""
    generators = [torch.default_generator, *rng_state.further(torch.device("cpu"))]
    return [generator.get_state().numpy().tobytes() for generator in generators]


@cache
def _capture_stream(index: int) -> torch.cuda.Stream:
    """Return the stream on which graphs of a device are recorded.

    There is one stream per device, because torch's allocator keeps the freed blocks of each stream separate.
    """
    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]
