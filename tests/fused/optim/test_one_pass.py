"""The Triton kernels step a stack as arithmetic on lists does; they run in Triton's interpreter, on the CPU."""

import importlib.util
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard._fast_paths import use_fast_paths
from trainyard.fused import optim
from trainyard.fused.optim import one_pass
from trainyard.fused.optim.kernel import KernelOptimizer

NEEDS = "needs the package triton, which pip installs with a CUDA build of torch, and with trainyard[test] on Linux"
KERNELS = "trainyard.fused.optim.triton_kernels"
OPTIM = torch.optim
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # in places that are masked
LRS = [1e-3, 3e-3, 1e-2, 2e-2]


@pytest.fixture(scope="module")
def interpreted() -> Any:
    """The module of the kernels in Triton's interpreter, for which Triton decides when a kernel is defined."""
    pytest.importorskip("triton", reason=NEEDS)
    spec = importlib.util.find_spec(KERNELS)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setitem(sys.modules, KERNELS, module)  # a dataclass looks for its module there
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(interpreted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs and launches so small that a few numbers need several."""
    monkeypatch.setattr(interpreted, "WIDTH", 32)
    monkeypatch.setattr(interpreted, "PARAMETERS", 3)


@pytest.fixture
def on_the_cpu(interpreted: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What is stacked on the CPU within `use(True)` steps by the kernels; within `use(False)` by arithmetic."""
    monkeypatch.setattr(KernelOptimizer, "_runs", lambda self, numbers, bucket: [])
    monkeypatch.setitem(sys.modules, KERNELS, interpreted)
    monkeypatch.setattr(optim, "triton_kernels", interpreted, raising=False)

    def use(kernels: bool) -> None:
        monkeypatch.setattr(one_pass, "DEVICES", ("cpu",) if kernels else ())

    one_pass._working_classes.cache_clear()
    yield use
    one_pass._working_classes.cache_clear()


def launches(optimizer: Any) -> list[bool]:
    """For each bucket of the latest step, whether kernels stepped it."""
    return [bucket.launch is not None for _, buckets in optimizer._plans for bucket in buckets]


BETA = st.sampled_from([0.0, 0.3, 0.9, 0.999])
NUMBERS = {
    "lr": st.floats(0, 0.1),
    "weight_decay": st.sampled_from([0.0, 0.01, 0.5]),
    "eps": st.floats(1e-8, 1e-2),
    "betas": st.tuples(BETA, BETA),
    "momentum": st.sampled_from([0.0, 0.5, 0.9]),
    "dampening": st.sampled_from([0.0, 0.5]),
}
FLAGS = {
    OPTIM.Adam: ("maximize", "amsgrad", "decoupled_weight_decay"),
    OPTIM.AdamW: ("maximize", "amsgrad"),
    OPTIM.SGD: ("maximize", "nesterov"),
}


@st.composite
def sweeps(draw: Any) -> Any:
    kind = draw(st.sampled_from(list(FLAGS)))
    flags = {name: draw(st.booleans()) for name in FLAGS[kind]}
    names = ["lr", "weight_decay", *(["momentum", "dampening"] if kind is OPTIM.SGD else ["eps", "betas"])]
    given = {name: NUMBERS[name] for name in names}
    if flags.get("nesterov"):  # torch takes it with these alone
        given |= {"momentum": st.sampled_from([0.5, 0.9]), "dampening": st.just(0.0)}
    numbers = [flags | {name: draw(of) for name, of in given.items()} for _ in range(draw(st.integers(1, 3)))]
    shapes = draw(st.lists(st.lists(st.integers(1, 3), max_size=4).map(tuple), min_size=1, max_size=4))
    return (
        kind,
        numbers,
        {
            "shapes": shapes,
            "split": draw(st.integers(1, len(shapes))),
            "seed": draw(st.integers(0, 2**16)),
            "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
        },
    )


@pytest.mark.slow
@settings(max_examples=20)
@given(sweep=sweeps(), data=st.data())
def test_any_stack_is_stepped_as_by_arithmetic(
    small: None, on_the_cpu: Any, pair: Any, assert_same: Any, sweep: Any, data: st.DataObject
) -> None:
    kind, numbers, rest = sweep
    members = len(numbers)
    earlier = data.draw(st.lists(st.integers(0, 2), min_size=members, max_size=members), "steps before")
    later = data.draw(st.lists(st.lists(st.booleans(), min_size=members, max_size=members), min_size=1, max_size=2))
    lr = data.draw(st.lists(NUMBERS["lr"], min_size=members, max_size=members), "other learning rates")
    ends = []
    for kernels in (True, False):
        on_the_cpu(kernels)
        both = pair(kind, numbers, **rest)
        for k, count in enumerate(earlier):
            for _ in range(count):  # alone, and unequally often
                both.gradients()
                both.solos[k].step()
            for param, stack in zip(both.params[k], both.stacked, strict=True):
                stack.data[k] = param.detach()
        both.stack()
        for step, skip in enumerate(later):
            if step == 1:
                both.write(lr=torch.tensor(lr, dtype=torch.float64))
            both.gradients()
            for k, solo in enumerate(both.solos):
                if not skip[k]:
                    solo.step()
            both.optimizer.step(skip=torch.tensor(skip))
        assert set(launches(both.optimizer)) == {kernels}
        close = 1e-11 if both.dtype == torch.float64 else 2e-5
        assert both.distance() < close
        both.check_states(close)
        ends.append(both)
    for one, other in zip(*(both.stacked for both in ends), strict=True):
        torch.testing.assert_close(one, other, rtol=close, atol=close)
    for k in range(members):
        assert_same(*(both.optimizer.member_state_dict(k) for both in ends), close)


@pytest.mark.parametrize("width", [4, 1024])
def test_many_parameters_and_parameters_without_a_gradient(
    interpreted: Any, on_the_cpu: Any, pair: Any, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_cpu(True)
    monkeypatch.setattr(interpreted, "WIDTH", width)
    monkeypatch.setattr(interpreted, "PARAMETERS", 4)
    shapes = [(3,), (), (2, 8), (5,), (1, 1), (0,), (16,)] * 2
    both = pair(OPTIM.AdamW, [{"lr": lr, "amsgrad": True} for lr in LRS[:2]], shapes=shapes, split=len(shapes))
    both.steps(1)
    both.steps(1, without=(0, 7))
    both.steps(1)
    assert both.distance() < 1e-12
    both.check_states()


def test_members_that_leave(small: None, on_the_cpu: Any, pair: Any) -> None:
    on_the_cpu(True)
    both = pair(OPTIM.SGD, [{"lr": lr, "momentum": 0.9} for lr in LRS])
    both.steps(2)
    both.keep([2, 0])
    both.steps(2)
    assert set(launches(both.optimizer)) == {True}
    assert both.distance() < 1e-12
    both.check_states()


def test_a_momentum_that_goes_and_comes_back(small: None, on_the_cpu: Any, pair: Any) -> None:
    on_the_cpu(True)
    both = pair(OPTIM.SGD, [{"lr": lr, "momentum": 0.9, "dampening": 0.5} for lr in LRS])
    for momentum in ([0.9, 0.9, 0.0, 0.5], [0.0, 0.9, 0.0, 0.5], [0.0] * 4, [0.9, 0.0, 0.0, 0.5]):
        both.write(momentum=torch.tensor(momentum, dtype=torch.float64))
        both.steps(2)
    assert both.distance() < 1e-12
    both.check_states()


@pytest.mark.parametrize("kind", list(FLAGS))
def test_what_is_no_number_stays_in_its_member(small: None, on_the_cpu: Any, pair: Any, kind: Any) -> None:
    on_the_cpu(True)
    extra = {"momentum": 0.9} if kind is OPTIM.SGD else {"amsgrad": True}
    both = pair(kind, [{"lr": lr, "weight_decay": 0.1, **extra} for lr in LRS[:3]], dtype=torch.float32)
    both.check_a_nan(member=1, steps=2, tolerance=1e-5)


def test_new_numbers_are_read_where_the_old_ones_were(small: None, on_the_cpu: Any, pair: Any) -> None:
    """A captured graph calls the kernels with the addresses of its capture."""
    on_the_cpu(True)
    both = pair(OPTIM.Adam, [{"lr": lr} for lr in LRS])

    def addresses() -> Any:
        (_, (bucket,)), *_ = both.optimizer._plans
        tensors = [*both.optimizer.numbers[0].device.values(), bucket.clock["step"]]
        return [tensor.data_ptr() for tensor in (*tensors, bucket.launch._rates, bucket.launch._floors)]

    both.steps(1)
    before = addresses()
    both.write(lr=torch.tensor(LRS[::-1], dtype=torch.float64))
    both.steps(2)
    assert addresses() == before
    assert both.distance() < 1e-12


def test_gradients_at_odd_addresses_are_copied(small: None, on_the_cpu: Any, pair: Any) -> None:
    """Triton would compile other code for them, which must not happen within a capture."""
    on_the_cpu(True)
    both = pair(OPTIM.SGD, [{"lr": lr} for lr in LRS], dtype=torch.float32, shapes=[(5, 3)], split=1)
    both.gradients()
    (param,) = both.stacked
    odd = torch.empty(param.numel() + 1)[1:].view_as(param).copy_(param.grad)
    assert odd.data_ptr() % 16
    param.grad = odd
    (given,) = [grad for bucket in both.optimizer._plan(0) for grad in bucket.launch._grads()]
    assert given.data_ptr() % 16 == 0
    assert torch.equal(given, odd)


# -- when they are used ------------------------------------------------------------------------------------------------


def test_not_with_fast_paths_off(on_the_cpu: Any, pair: Any) -> None:
    on_the_cpu(True)
    use_fast_paths(False)
    try:
        both = pair(OPTIM.SGD, [{"lr": lr} for lr in LRS])
        both.steps(1)
    finally:
        use_fast_paths(True)
    assert set(launches(both.optimizer)) == {False}


def test_not_without_triton(monkeypatch: pytest.MonkeyPatch, pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(one_pass, "DEVICES", ("cpu",))
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, KERNELS, raising=False)
    monkeypatch.delattr(optim, "triton_kernels", raising=False)
    one_pass._working_classes.cache_clear()
    with caplog.at_level(logging.INFO):
        both = pair(OPTIM.SGD, [{"lr": lr} for lr in LRS])
    one_pass._working_classes.cache_clear()
    both.steps(2)
    assert both.distance() < 1e-12
    assert "because Triton cannot be imported" in caplog.text


@pytest.mark.parametrize("fault", ["raises", "is wrong"])
def test_not_where_they_do_not_work(
    interpreted: Any,
    on_the_cpu: Any,
    pair: Any,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On a machine without a compiler Triton fails when it first launches a kernel."""

    class Broken(interpreted.Adam):
        def __call__(self, *args: Any, **kwargs: Any) -> None:
            if fault == "raises":
                raise RuntimeError("Failed to find C compiler.\nSet CC.")

    monkeypatch.setattr(interpreted, "Adam", Broken)
    on_the_cpu(True)
    for _ in range(2):
        both = pair(OPTIM.Adam, [{"lr": lr} for lr in LRS])
    both.steps(1)
    assert set(launches(both.optimizer)) == {False}
    told = "do not work: Failed to find C compiler" if fault == "raises" else "their results differ"
    assert [record.getMessage().count(told) for record in caplog.records] == [1]
    assert ".." not in caplog.text


def test_not_for_parameters_whose_members_lie_within_one_another(on_the_cpu: Any, pair: Any) -> None:
    on_the_cpu(True)
    both = pair(OPTIM.SGD, [{"lr": lr, "momentum": 0.9} for lr in LRS], shapes=[(5, 3)], split=1)
    (param,) = both.stacked
    param.data = param.data.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    both.steps(3)
    assert launches(both.optimizer) == [False]
    assert both.distance() < 1e-12
    both.check_states()
