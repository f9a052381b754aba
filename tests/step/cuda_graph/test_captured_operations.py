"""Operations of a captured step, within its graph and outside of it, and what the host calls for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from calls import calls
from captured_training import step_of
from operations import Operations
from recorded_graph import RecordedGraph

from trainyard.data import TensorLoader
from trainyard.fused.loader import stack_loader
from trainyard.fused.model import StackedModel
from trainyard.fused.optim import bucket, stack_optimizers
from trainyard.fused.optim.kernel import KernelOptimizer
from trainyard.models import MLP
from trainyard.optim import build
from trainyard.step.clip import NoClip
from trainyard.step.cuda_graph import graph_order
from trainyard.step.cuda_graph.captured_step import CapturedStep
from trainyard.step.cuda_graph.take_rows import RowTable, take_by_torch
from trainyard.step.precision import Precision
from trainyard.step.step import Step, make_step

SAMPLES, SIZE = 24, 4
ALONE = 7 + 12 + 2
"""Of the step of an MLP of three layers: tests/step/test_operations.py."""
STACK = 11 + 13 + 15
"""Of that of its stack, under Adam by torch's functions: tests/fused/test_lean_operations.py."""
BY_TORCH = 4
"""The indices, the rows of two tensors, and the counter; one kernel does that where Triton has it."""
LIMITS = {1: 22, 16: 60}
"""Kernels of a graph, by the number of members."""

pytestmark = pytest.mark.usefixtures("capturable_on_the_cpu", "columns")


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU alone torch's kernels step members, and arithmetic is done in blocks."""
    monkeypatch.setattr(KernelOptimizer, "_runs", lambda *_: [])
    monkeypatch.setattr(bucket, "LIMIT", 2**40)


class Unseen(RecordedGraph):
    """Replays are no operations of the host."""

    def capture(self, function: Callable[[], Any]) -> Any:
        replay, result = super().capture(function)

        def unseen() -> None:
            with torch.utils._python_dispatch._disable_current_modes():
                replay()

        return unseen, result


class Within(RecordedGraph):
    """Counts the operations of the graph, and records none: a recording holds tensors, and autograd copies those."""

    counted: Counter[str]

    def capture(self, function: Callable[[], Any]) -> Any:
        with Operations() as counted:
            result = function()
        self.counted = sum(counted.phases.values(), Counter())
        return lambda: None, result


def stepping(members: int) -> tuple[Step, Any, Any]:
    """A step, the modules that it runs, and its loader."""
    torch.manual_seed(0)
    loader: Any = TensorLoader((torch.randn(SAMPLES, 8), torch.randint(3, (SAMPLES,))), SIZE, shuffle=True)
    if members == 1:
        model = MLP(8, 3, hidden=[8, 8])
        optimizer = build(lambda params: torch.optim.Adam(params, fused=True), model.parameters())
        return step_of(model, optimizer), dict(model.named_modules()), loader
    models = [MLP(8, 3, hidden=[8, 8]) for _ in range(members)]
    stack = StackedModel(models, own_batches=True)
    optims = [build(partial(torch.optim.Adam, lr=1e-3 * (1 + k)), each.parameters()) for k, each in enumerate(models)]
    optimizer = stack_optimizers(optims, dict(zip(models[0].parameters(), stack.parameters(), strict=True)))
    step = make_step(
        stack.train_step, optimizer, precision=Precision(), clip=NoClip(), accumulate=1, stacked=True
    )  # fmt: skip
    return step, {**dict(stack.code.named_modules()), "": stack}, stack_loader(loader, range(members))


def within(members: int) -> Counter[str]:
    """The operations of the graph."""
    plain, modules, loader = stepping(members)
    graph = Within()
    step = CapturedStep(plain, graph, modules)
    for index, batch in zip(range(4), step.batches_of(loader, 0, 0), strict=False):
        step(batch, index, len(loader))
    return graph.counted


def outside(members: int) -> list[Counter[str]]:
    """The operations besides the graph, in each step of two epochs of replays."""
    plain, modules, loader = stepping(members)
    graph = Unseen()
    step = CapturedStep(plain, graph, modules)
    found: list[Counter[str]] = []
    for epoch in range(3):
        batches = step.batches_of(loader, epoch, 0)
        for index in range(len(loader)):
            with Operations() as counted:
                step(next(batches), index, len(loader))
            found.append(sum(counted.phases.values(), Counter()))
    assert (graph.captures, graph.replays) == (1, 3 * 6 - 3)
    return found[6:]


@pytest.mark.parametrize(("members", "expected"), [(1, ALONE), (16, STACK)])
def test_a_step_whose_graph_gathers(members: int, expected: int) -> None:
    """It copies nothing: its outputs are all that is read; the table is written once an epoch."""
    counted = within(members)
    assert counted.total() == expected + BY_TORCH, counted
    read = Counter({"clone": 1})
    steps = outside(members)
    for epoch in (steps[:6], steps[6:]):
        assert epoch[0]["copy_"] == epoch[0]["fill_"] == 1
        assert epoch[1:] == [read] * 5


@pytest.mark.parametrize("members", [1, 16])
def test_a_step_whose_batches_are_copied(monkeypatch: pytest.MonkeyPatch, members: int) -> None:
    """The tensors of a batch, of two dtypes, are a copy each on CUDA."""
    monkeypatch.setattr(CapturedStep, "batches_of", Step.batches_of)
    assert outside(members)[1:6] == [Counter({"_foreach_copy_": 1, "clone": 1})] * 5


@pytest.mark.parametrize("members", LIMITS)
def test_one_kernel_gathers_within_the_limit(monkeypatch: pytest.MonkeyPatch, members: int) -> None:
    """As with Triton, whose launch torch does not see."""
    launches = []

    def take(tensors: Any, table: RowTable, count: int) -> Any:
        with torch.utils._python_dispatch._disable_current_modes():
            launches.append(count)
            return take_by_torch(tensors, table, count)

    monkeypatch.setattr(graph_order, "take_rows", take)
    counted = within(members)
    assert len(launches) == 2  # before the capture, and within
    assert counted.total() + 1 <= LIMITS[members], counted


def test_the_host_calls_less_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Python's and C's functions, from the loader to the launch."""
    numbers = []
    for own in (CapturedStep.batches_of, Step.batches_of):
        monkeypatch.setattr(CapturedStep, "batches_of", own)
        plain, modules, loader = stepping(16)
        step = CapturedStep(plain, Unseen(), modules)
        for epoch in range(2):
            for index, batch in enumerate(step.batches_of(loader, epoch, 0)):
                step(batch, index, len(loader))
        for captured in step._captured.values():
            object.__setattr__(captured, "replay", lambda: None)

        def epoch_of() -> None:
            for index, batch in enumerate(step.batches_of(loader, 2, 0)):  # noqa: B023
                step(batch, index, len(loader))  # noqa: B023

        numbers.append(calls(epoch_of))
    assert numbers[0] < numbers[1]
