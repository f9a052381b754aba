"""CUDA graphs as far as a machine without a device can tell: the calls of torch are recorded in their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainyard import _torch_internals
from trainyard.step.cuda_graph import graph as module
from trainyard.step.cuda_graph.graph import CudaGraph, Uncapturable


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Calls of torch in their order; `"fails"` in the list makes the end of a capture fail as CUDA does."""
    made: list[Any] = []

    class Recorded:
        def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
            made.append("begin")

        def capture_end(self) -> None:
            made.append("end")
            if "fails" in made:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

        def replay(self) -> None:
            made.append("replay")

    class Generator:
        def clone_state(self) -> Any:
            return self

        def graphsafe_set_state(self, state: Any) -> None:
            made.append("generator")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "Stream", lambda index: SimpleNamespace(device=torch.device("cuda", index)))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "default_generators", [Generator(), Generator()])
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *given: made.append(given))
    module._capture_stream.cache_clear()
    yield made
    module._capture_stream.cache_clear()


def graph() -> CudaGraph:
    return CudaGraph(torch.device("cuda", 1))


def test_a_capture_whose_end_fails_ends_for_the_allocator_too(calls: list[Any]) -> None:
    calls.append("fails")
    with pytest.raises(Uncapturable, match="operation failed due to a previous error"):
        graph().capture(lambda: None)
    assert calls == ["fails", "begin", "end", (1, (0, 7)), "generator"]


def test_work_that_fails_is_named_and_the_capture_ends(calls: list[Any]) -> None:
    def work() -> None:
        calls.append("fails")
        raise ValueError("it reads a number")

    with pytest.raises(Uncapturable, match="it reads a number"):
        graph().capture(work)
    assert calls == ["begin", "fails", "end", (1, (0, 7)), "generator"]


def test_a_capture_that_ends_is_left_to_torch(calls: list[Any]) -> None:
    replay, result = graph().capture(lambda: 3)
    replay()
    assert result == 3
    assert calls == ["begin", "end", "replay"]


def test_an_allocator_that_has_ended_the_capture_already(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(device: int, pool: tuple[int, int]) -> None:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", ended)
    _torch_internals.end_allocation(0, (0, 1))
    monkeypatch.delattr(torch._C, "_cuda_endAllocateToPool")
    _torch_internals.end_allocation(0, (0, 1))


def test_all_graphs_of_a_device_are_recorded_on_one_stream(calls: list[Any]) -> None:
    """torch's allocator keeps blocks for each stream: a stream for each step would strand them."""
    assert module._capture_stream(1) is module._capture_stream(1)
    assert module._capture_stream(0) is not module._capture_stream(1)
