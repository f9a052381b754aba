"""The code of the Triton kernels for a GPU: compiled without one, and run where there is one."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainyard._fast_paths import use_fast_paths
from trainyard.fused.optim import one_pass, stack_optimizers
from trainyard.optim import build

OPTIM = torch.optim
LRS = [1e-3, 3e-3, 1e-2, 2e-2]
SHAPES = [(64, 33), (33,), (), (3, 5, 7, 2), (4096,)]
CASES: dict[str, tuple[Any, int]] = {  # the bytes that a step moves for each number of a parameter
    "adam": (partial(OPTIM.Adam), 28),
    "adamw": (partial(OPTIM.AdamW, maximize=True), 28),
    "adam_amsgrad": (partial(OPTIM.Adam, amsgrad=True), 36),
    "sgd": (partial(OPTIM.SGD), 12),
    "sgd_momentum": (partial(OPTIM.SGD, momentum=0.9), 20),
    "sgd_nesterov": (partial(OPTIM.SGD, momentum=0.9, nesterov=True), 20),
}


class Device:
    """A driver of Triton's for a device that is not there: nothing is launched on it."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


class Compiling:
    """A kernel that is compiled for the arguments that it is given, and not launched."""

    def __init__(self, kernel: Any, into: dict[str, list[str]]) -> None:
        self.kernel, self.into = kernel, into

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            done = self.kernel.run(*args, grid=grid, warmup=True, **kwargs)
            self.into.setdefault(self.kernel.__name__, []).append(done.asm["ptx"])

        return launch


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Makes the PTX of the kernels, by their names, that the optimizer made by `stacked` would launch in a step."""
    pytest.importorskip("triton", reason="needs the package triton, as test_one_pass.py does")
    from triton.runtime import driver

    from trainyard.fused.optim import triton_kernels

    def ptx_of(stacked: Any, capability: int, skip: Any = None) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        classes = {"Adam": triton_kernels.Adam, "SGD": triton_kernels.SGD}
        with monkeypatch.context() as patch:
            patch.setattr(one_pass, "DEVICES", ("cpu",))
            patch.setattr(one_pass, "_working_classes", lambda device: classes)
            for name in ("_adam_clock", "_adam_update", "_sgd_clock", "_sgd_update"):
                patch.setattr(triton_kernels, name, Compiling(getattr(triton_kernels, name), found))
            driver.set_active(Device(capability))
            both = stacked()
            both.gradients()
            both.optimizer.step(skip)
        return found

    yield ptx_of
    driver.set_active(None)  # that of the machine, when it is asked for


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_bytes_a_number(case: str, compiled: Any, pair: Any) -> None:
    """Each of a program's 128 threads has 8 numbers, and moves them in fours."""
    kind, expected = CASES[case]
    numbers = [kind.keywords | {"lr": lr} for lr in LRS]
    shapes = [(64, 32), (16,), (4096,)]
    found = compiled(lambda: pair(kind.func, numbers, dtype=torch.float32, shapes=shapes, split=3), 90)
    ((name, (ptx,)),) = [(name, ptxs) for name, ptxs in found.items() if name.endswith("update")]
    moves = re.findall(r"(?:ld|st)\.global(?:\.\w+)*\.v4\.b32", ptx)
    assert len(moves) * 4 * 4 == 8 * expected, name
    assert ".local" not in ptx
    clocks = 0 if case == "sgd" else 1
    assert sum(map(len, found.values())) == clocks + 1


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "capability"), [(torch.float32, 75), (torch.float64, 90)])
def test_they_compile_without_a_gpu(dtype: Any, capability: int, compiled: Any, pair: Any) -> None:
    for kind, _ in (CASES["adam_amsgrad"], CASES["sgd_nesterov"]):
        numbers = [kind.keywords | {"lr": lr} for lr in LRS]
        stacked = partial(pair, kind.func, numbers, dtype=dtype, shapes=SHAPES, split=len(SHAPES))
        found = compiled(stacked, capability, torch.tensor([False, True, False, False]))
        assert [len(ptxs) for name, ptxs in found.items() if name.endswith("update")] == [2]  # aligned rows, and others


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [OPTIM.SGD, OPTIM.Adam, OPTIM.AdamW])
def test_on_a_gpu(kind: Any) -> None:
    """The kernels, by themselves and captured, beside arithmetic on lists; nothing waits for the device."""
    extra = {"momentum": 0.9, "nesterov": True} if kind is OPTIM.SGD else {"amsgrad": True}
    ends = []
    for how in ("arithmetic", "kernels", "captured"):
        use_fast_paths(how != "arithmetic")
        try:
            draw = torch.Generator().manual_seed(0)
            params = [[nn.Parameter(torch.randn(shape, generator=draw).cuda()) for shape in SHAPES] for _ in LRS]
            wholes = [nn.Parameter(torch.stack([p.detach() for p in column])) for column in zip(*params, strict=True)]
            grads = [torch.randn(whole.shape, generator=draw).cuda() for whole in wholes]
            solos = [
                build(partial(kind, lr=lr, weight_decay=0.1, **extra), own) for lr, own in zip(LRS, params, strict=True)
            ]
            optimizer = stack_optimizers(solos, dict(zip(params[0], wholes, strict=True)))
        finally:
            use_fast_paths(True)
        for whole, grad in zip(wholes, grads, strict=True):
            whole.grad = grad
        skip = torch.tensor([False, True, False, False], device="cuda")
        optimizer.step()
        optimizer.step(skip=skip)
        step: Any = partial(optimizer.step, skip)
        if how == "captured":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step(skip)
            step = graph.replay
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        by_kernels = {bucket.launch is not None for _, buckets in optimizer._plans for bucket in buckets}
        assert by_kernels == {how != "arithmetic"}
        ends.append([whole.detach().cpu() for whole in wholes])
    for other in ends[1:]:
        for one, two in zip(ends[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
