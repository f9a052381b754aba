"""Operations of a step, by torch's functions on lists, as on CUDA: each is a kernel there."""

import collections
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainyard.fused.optim import bucket
from trainyard.fused.optim.kernel import KernelOptimizer

OPTIM = torch.optim
VIEWS = ("alias", "as_strided", "detach", "select", "slice", "split_with_sizes", "unbind", "view")
EMPTY = ("empty_like", "new_empty")


class Kernels(TorchDispatchMode):
    """Counts the kernels that CUDA would launch, by their operator.

    A function on lists is one kernel if the tensors at each place have equal shapes and strides, without gaps
    (`can_use_fast_route` of torch's `ForeachUtils.h`); else one for each place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        if name.startswith("_foreach_"):
            lists = [given for given in args if isinstance(given, list | tuple)]
            rows = list(zip(*lists, strict=True))
            alike = all(len({(tensor.shape, tensor.stride()) for tensor in row}) == 1 for row in rows)
            dense = all(is_dense(tensor) for row in rows for tensor in row)
            self.counts[name] += 1 if alike and dense else len(rows)
        elif name not in (*VIEWS, *EMPTY) and not name.startswith("profiler::"):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def is_dense(tensor: torch.Tensor) -> bool:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() == 1 + last


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelOptimizer, "_runs", lambda self, numbers, bucket: [])
    monkeypatch.setattr(bucket, "LIMIT", 2**40)


SHAPES = [(6, 4), (6,), (6, 6), (6,), (3, 6), (3,)]  # an MLP of three layers
ADAM = {"betas": (0.9, 0.99), "eps": 1e-6}


def kernels_of_a_step(both: Any) -> collections.Counter[str]:
    for solo in both.solos:
        solo.step()
    with Kernels() as kernels:
        both.optimizer.step()
    assert both.distance() < 1e-11
    return kernels.counts


@pytest.mark.parametrize(
    ("kind", "flags", "clock", "once", "each"),
    [
        # clock: 8. Once: square of the gradient, root, quotient. Each parameter: two averages, eps, correction.
        (OPTIM.Adam, ADAM, 8, 3, 4),
        (OPTIM.AdamW, ADAM, 8, 3, 5),
        (OPTIM.Adam, ADAM | {"amsgrad": True}, 8, 4, 4),
        (OPTIM.SGD, {}, 0, 0, 1),
        (OPTIM.SGD, {"momentum": 0.9}, 1, 1, 2),
    ],
)
def test_kernels_of_a_step(
    as_on_cuda: None, pair: Any, kind: Any, flags: Any, clock: int, once: int, each: int
) -> None:
    both = pair(kind, [{"lr": 0.01 * k} | flags for k in range(1, 5)], shapes=SHAPES, split=len(SHAPES))
    both.steps(2)
    both.gradients()
    counts = kernels_of_a_step(both)
    assert sum(counts.values()) == clock + once + each * len(SHAPES), dict(counts)


def test_as_many_in_channels_last(as_on_cuda: None, pair: Any) -> None:
    counts = []
    for order in ((0, 1, 2, 3, 4), (0, 1, 3, 4, 2)):
        both = pair(OPTIM.Adam, [{"lr": 0.01 * k} | ADAM for k in range(1, 5)], shapes=[(3, 4, 2, 2)] * 2, split=2)
        for param in both.stacked:
            param.data = in_order(param.data, order)
        both.steps(2)
        both.gradients()
        for param in both.stacked:
            param.grad = in_order(param.grad, order)
        counts.append(kernels_of_a_step(both))
    assert counts[0] == counts[1]


def in_order(tensor: torch.Tensor, order: Any) -> torch.Tensor:
    """A copy whose dimensions lie in memory in this order, the outermost first."""
    back = [order.index(dimension) for dimension in range(len(order))]
    return tensor.permute(order).contiguous().permute(back)
