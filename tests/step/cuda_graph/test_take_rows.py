"""The kernel that takes rows, in Triton's interpreter on the CPU; torch's functions are what it is held to."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainyard._fast_paths import use_fast_paths
from trainyard.step import cuda_graph
from trainyard.step.cuda_graph import take_rows
from trainyard.step.cuda_graph.take_rows import RowTable, take_by_torch

KERNEL = "trainyard.step.cuda_graph.take_kernel"
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # in places that are masked


@pytest.fixture(scope="module")
def interpreted() -> Any:
    """The module of the kernel in Triton's interpreter, for which Triton decides when a kernel is defined."""
    pytest.importorskip("triton", reason="needs the package triton, as tests/fused/optim/test_one_pass.py does")
    spec: Any = importlib.util.find_spec(KERNEL)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
    module.__dict__["WIDTH"] = 32  # several programs for a few rows
    return module


@pytest.fixture
def on_the_cpu(interpreted: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel is chosen on the CPU, too."""
    monkeypatch.setitem(sys.modules, KERNEL, interpreted)
    monkeypatch.setattr(cuda_graph, "take_kernel", interpreted, raising=False)
    monkeypatch.setattr(take_rows, "DEVICES", ("cpu",))
    take_rows._working.cache_clear()
    yield
    take_rows._working.cache_clear()


DTYPES = [torch.float32, torch.int64, torch.uint8, torch.bool, torch.bfloat16, torch.float64]


@given(
    shapes=st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(1, 5), max_size=2)), min_size=1, max_size=4
    ),
    samples=st.integers(1, 40),
    batches=st.integers(1, 4),
    size=st.integers(1, 30),
    data=st.data(),
)
def test_it_takes_the_rows_that_torch_takes(
    interpreted: Any, shapes: Any, samples: int, batches: int, size: int, data: st.DataObject
) -> None:
    tensors = [(torch.randn(samples, *shape) * 9).to(dtype) for dtype, shape in shapes]
    rows = torch.randint(samples, (batches, size), dtype=data.draw(st.sampled_from([torch.int64, torch.int32])))
    table, other = RowTable.of(rows), RowTable.of(rows)
    for number in range(batches):
        count = data.draw(st.integers(1, size))
        found, expected = interpreted.take(tensors, table, count), take_by_torch(tensors, other, count)
        for one, wanted in zip(found, expected, strict=True):
            assert (one.dtype, one.stride()) == (wanted.dtype, wanted.stride())
            assert torch.equal(one, wanted)
        assert (table.counter.item(), table.arrived.item()) == (number + 1, 0)


def test_rows_that_do_not_lie_one_after_another(interpreted: Any) -> None:
    windows = torch.arange(20).unfold(0, 5, 1)
    table = RowTable.of(torch.tensor([[3, 1]]))
    (found,) = interpreted.take((windows,), table, 2)
    assert found.tolist() == windows[[3, 1]].tolist()
    assert table.counter.item() == 1


@pytest.mark.usefixtures("on_the_cpu")
def test_it_is_chosen_where_it_works(interpreted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert take_rows._kernel(CPU) is interpreted.take
    use_fast_paths(False)
    try:
        assert take_rows._kernel(CPU) is None
    finally:
        use_fast_paths(True)
    monkeypatch.setattr(take_rows, "DEVICES", ("cuda",))
    assert take_rows._kernel(CPU) is None


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize(
    ("works", "told"), [(False, "the kernel returns other rows"), (RuntimeError("no\ncompiler"), "no")]
)
def test_torchs_functions_where_it_does_not_work(
    interpreted: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, works: Any, told: str
) -> None:
    def works_on(device: Any) -> bool:
        if isinstance(works, Exception):
            raise works
        return bool(works)

    monkeypatch.setattr(interpreted, "works_on", works_on)
    table = RowTable.of(torch.tensor([[3, 1]]))
    caplog.set_level(logging.INFO)
    for _ in range(2):
        assert take_rows._kernel(CPU) is None
    (found,) = take_rows.take_rows((torch.arange(5) * 2,), table, 2)
    assert found.tolist() == [6, 2]
    assert [record.getMessage() for record in caplog.records] == [
        f"Captured steps gather their batches with several kernels, because the Triton kernel does not work: {told}."
    ]


@pytest.mark.slow
def test_it_compiles_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="needs the package triton")
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from trainyard.step.cuda_graph import take_kernel

    class Device:
        """A driver of Triton's for a device that is not there."""

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

    class Compiling:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **flags: made.append(kernel.run(*args, grid=grid, warmup=True, **flags).asm["ptx"])

    made: list[str] = []
    kernel = take_kernel._take
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(take_kernel, "_take", Compiling())
    driver.set_active(Device())
    try:
        for tensors in ((torch.randn(64, 64), torch.arange(64)), (torch.randn(64, 3), torch.arange(64) > 5)):
            take_kernel.take(tensors, RowTable.of(torch.arange(64).view(4, 16)), 16)
    finally:
        driver.set_active(None)
    for ptx in made:
        barrier, atomic = ptx.index("bar.sync"), ptx.index("atom.")
        assert barrier < atomic
        assert ".local" not in ptx


@pytest.mark.gpu
def test_on_cuda() -> None:
    device = torch.device("cuda")
    take = take_rows._kernel(device)
    assert take is not None, "the kernel does not work on this device: see the log"
    numbers = torch.arange(5000, device=device)
    tensors = torch.randn(5000, 37, device=device), torch.randn(5000, 64, device=device).half(), numbers, numbers > 9
    rows = torch.randint(5000, (40, 700), device=device)
    table, other = RowTable.of(rows), RowTable.of(rows)
    for number in range(40):
        count = 700 - 13 * number
        for one, wanted in zip(take(tensors, table, count), take_by_torch(tensors, other, count), strict=True):
            assert torch.equal(one, wanted)
    assert (table.counter.item(), table.arrived.item()) == (40, 0)
