"""What can be stacked, and what stacking leaves alone."""

import functools
import os
import sys
from typing import Any

import forked
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from waiting import LIMIT

from trainyard.errors import Unfusable
from trainyard.fused.optim import StackedOptimizer, bucket, kernel, stack_optimizers
from trainyard.optim import Lion, build

OPTIM = torch.optim


def stacked(*partials: Any, dtype: Any = torch.float32, shape: Any = (2,)) -> Any:
    """Stack one optimizer for each of `partials`, each on a parameter of its own."""
    params = [nn.Parameter(torch.ones(shape, dtype=dtype)) for _ in partials]
    solos = [partial([param]) for partial, param in zip(partials, params, strict=True)]
    whole = nn.Parameter(torch.stack([param.detach() for param in params]))
    return stack_optimizers(solos, {params[0]: whole})


def twice(kind: Any, **kwargs: Any) -> Any:
    return [functools.partial(kind, **kwargs)] * 2


class Mine(OPTIM.Adam):
    """Somebody's own."""


@pytest.mark.parametrize(
    ("partials", "message"),
    [
        (twice(OPTIM.Adadelta), "Adadelta is not supported in a stack"),
        (twice(OPTIM.Rprop), "Rprop is not supported in a stack"),
        (twice(OPTIM.ASGD), "ASGD is not supported in a stack"),
        (twice(OPTIM.LBFGS), "LBFGS is not supported in a stack"),
        (twice(OPTIM.SparseAdam), "SparseAdam is not supported in a stack"),
        (twice(OPTIM.Adafactor), "Adafactor is not supported in a stack"),
        (twice(Mine), "Mine is not supported in a stack"),
        ([OPTIM.Adam, OPTIM.SGD], "of several classes: Adam, SGD"),
        ([OPTIM.Adam, OPTIM.AdamW], "of several classes: Adam, AdamW"),
        ([OPTIM.Adam, functools.partial(OPTIM.Adam, amsgrad=True)], "amsgrad differs between the members: False and"),
        ([Lion, functools.partial(Lion, maximize=True)], "maximize differs between the members"),
        (twice(OPTIM.Adam, lr=torch.tensor(0.1)), "lr is a tensor"),
        (
            twice(OPTIM.Adam, betas=(torch.tensor(0.9), torch.tensor(0.9)), capturable=True),
            "betas are tensors",
        ),
        (twice(OPTIM.Adam, differentiable=True), "differentiable=True is not supported in a stack"),
    ],
)
def test_what_cannot_be_stacked_says_why(partials: Any, message: str) -> None:
    with pytest.raises(Unfusable, match=message):
        stacked(*partials)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_dtypes_that_cannot_be_stacked(dtype: Any) -> None:
    with pytest.raises(Unfusable, match=f"parameters in {str(dtype)[6:]} are not supported in a stack"):
        stacked(*twice(OPTIM.Adam), dtype=dtype)


def test_other_parameters_or_groups_cannot_be_stacked() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    whole = {first: nn.Parameter(torch.ones(2, 2))}
    with pytest.raises(Unfusable, match="differ in their parameters"):
        stack_optimizers([OPTIM.SGD([first]), OPTIM.SGD([second])], whole)
    more = OPTIM.SGD([{"params": [first]}, {"params": [second]}])
    with pytest.raises(Unfusable, match="differ in their parameter groups"):
        stack_optimizers([OPTIM.SGD([first]), more], whole)
    named = OPTIM.SGD([{"params": [first], "initial_lr": 0.1}])
    with pytest.raises(Unfusable, match="differ in the contents of their parameter groups"):
        stack_optimizers([OPTIM.SGD([first]), named], whole)


def test_a_sparse_gradient_is_refused() -> None:
    optimizer = stacked(*twice(OPTIM.Adam))
    (param,) = optimizer.param_groups[0]["params"]
    param.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(Unfusable, match="sparse"):
        optimizer.step()


def test_numbers_are_rows_and_flags_are_plain() -> None:
    partials = [functools.partial(OPTIM.NAdam, lr=lr, betas=[0.9, lr], weight_decay=1) for lr in (0.1, 0.2)]
    optimizer = stacked(*partials)
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, StackedOptimizer)
    assert group["lr"].tolist() == [0.1, 0.2]
    assert group["lr"].dtype == torch.float64
    assert [beta.tolist() for beta in group["betas"]] == [[0.9, 0.9], [0.1, 0.2]]
    assert group["maximize"] is False
    member = optimizer.member_param_groups(1)[0]
    assert member["betas"] == [0.9, 0.2]
    assert member["weight_decay"] == 1.0
    assert [param.shape for param in member["params"]] == [(2,)]
    assert optimizer.member_state_dict(1)["param_groups"][0]["params"] == [0]


def test_refresh_says_when_the_arithmetic_becomes_another() -> None:
    optimizer = stacked(*twice(OPTIM.SGD, lr=0.1, momentum=0.9))
    group = optimizer.param_groups[0]
    assert not optimizer.refresh()
    group.update(lr=torch.zeros(2, dtype=torch.float64))
    assert not optimizer.refresh()
    group.update(weight_decay=torch.tensor([0.0, 0.1], dtype=torch.float64))
    assert optimizer.refresh()
    assert not optimizer.refresh()
    group.update(momentum=torch.tensor([0.0, 0.9], dtype=torch.float64))
    assert optimizer.refresh()


@pytest.mark.parametrize("kind", [OPTIM.Adam, OPTIM.AdamW, OPTIM.Adagrad])
def test_large_members_are_stepped_as_alone_to_the_bit(pair: Any, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "ALONE", 1)
    numbers = [{"lr": 0.01 * k, "weight_decay": 0.01 * (k % 3), "fused": True, "eps": 10.0**-k} for k in range(1, 7)]
    both = pair(kind, numbers, dtype=torch.float32, shapes=[(7, 5), (5,), (3,)])
    both.steps(5)
    both.write(lr=torch.rand(6, dtype=torch.float64))
    both.steps(5)
    assert both.distance() == 0


@pytest.mark.parametrize("kind", [OPTIM.Adam, OPTIM.AdamW, OPTIM.Adagrad])
def test_members_of_few_kinds_are_stepped_kind_by_kind(pair: Any, kind: Any) -> None:
    alike = {"lr": 0.02, "weight_decay": 0.1}
    numbers = [alike | {"eps": 1e-3} for _ in range(5)] + [{"lr": 0.01 * k, "eps": 1e-6} for k in range(1, 14)]
    both = pair(kind, numbers)
    both.steps(10)
    _, buckets = both.optimizer._plans[0]
    assert [run.rows for run in buckets[0].runs[1]] == [slice(0, 5), slice(5, 18)]
    both.keep([0, 1, 6, 9])
    both.steps(10)
    assert both.distance() < 1e-12
    both.check_states()


@pytest.mark.parametrize("kind", [OPTIM.SGD, OPTIM.Adam, OPTIM.RMSprop, OPTIM.RAdam, Lion])
def test_blocks_of_few_members(pair: Any, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "LIMIT", 40)
    numbers = [{"lr": 0.01 * k, "weight_decay": 0.1 * k} for k in range(1, 6)]
    both = pair(kind, numbers, shapes=[(4, 3), (2,), (30,)])
    both.steps(10)
    assert both.distance() < 1e-12
    both.check_states()


@pytest.mark.parametrize("kind", [OPTIM.SGD, OPTIM.Adam, OPTIM.NAdam, Lion])
def test_gradients_are_left_as_they_are(pair: Any, kind: Any) -> None:
    both = pair(kind, [{"lr": 0.1 * k, "weight_decay": 0.1 * k, "maximize": True} for k in range(1, 4)])
    both.gradients()
    before = [param.grad.clone() for param in both.stacked]
    both.optimizer.step()
    assert all(torch.equal(param.grad, grad) for param, grad in zip(both.stacked, before, strict=True))


@pytest.mark.parametrize("kind", [OPTIM.Adam, OPTIM.RMSprop])
def test_gradients_in_another_order_of_memory(pair: Any, kind: Any) -> None:
    both = pair(kind, [{"lr": 0.1 * k} for k in range(1, 4)])
    for _ in range(3):
        both.gradients()
        for param in both.stacked:
            param.grad = (
                torch.empty(param.shape[::-1], dtype=param.dtype).permute(*range(param.dim())[::-1]).copy_(param.grad)
            )
        for solo in both.solos:
            solo.step()
        both.optimizer.step()
    assert both.distance() < 1e-12


@pytest.mark.parametrize("kind", [OPTIM.SGD, OPTIM.Adam, OPTIM.AdamW, OPTIM.RMSprop, OPTIM.Adagrad, OPTIM.RAdam, Lion])
def test_a_nan_in_a_member_stays_there(pair: Any, kind: Any) -> None:
    extra = {"momentum": 0.9} if kind is OPTIM.SGD else {}
    both = pair(kind, [{"lr": 0.1 * k, "weight_decay": 0.1, **extra} for k in range(1, 4)])
    both.check_a_nan(member=1, steps=3, tolerance=1e-12)


def test_gradients_on_and_hooks() -> None:
    """`step` is called with gradients on too, and calls the hooks of the optimizer."""
    optimizer = stacked(*twice(OPTIM.Adam, lr=0.1))
    (param,) = optimizer.param_groups[0]["params"]
    (param**2).sum().backward()
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.step()
    assert calls == ["post"]
    assert param.requires_grad
    assert param.is_leaf
    assert torch.allclose(param, torch.full((2, 2), 0.9))


KINDS = {
    OPTIM.SGD: ("momentum", "dampening"),
    OPTIM.Adam: ("eps", "betas"),
    OPTIM.AdamW: ("eps", "betas"),
    OPTIM.RMSprop: ("eps", "alpha", "momentum"),
    OPTIM.Adagrad: ("eps", "lr_decay", "initial_accumulator_value"),
    OPTIM.NAdam: ("eps", "betas", "momentum_decay"),
    OPTIM.RAdam: ("eps", "betas"),
    OPTIM.Adamax: ("eps", "betas"),
    Lion: ("betas",),
}
BETA = st.sampled_from([0.0, 0.3, 0.9, 0.95])
NUMBERS = {
    "lr": st.floats(0, 0.1),
    "weight_decay": st.sampled_from([0.0, 0.0, 0.01, 0.5]),
    "eps": st.floats(1e-8, 1e-2),
    "betas": st.tuples(BETA, BETA),
    "alpha": st.sampled_from([0.3, 0.9, 0.99]),  # at 0 a centered RMSprop takes the root of rounding errors, solo too
    "momentum": st.sampled_from([0.0, 0.5, 0.9]),
    "dampening": st.sampled_from([0.0, 0.0, 0.5]),
    "lr_decay": st.floats(0, 1),
    "initial_accumulator_value": st.floats(0, 1),
    "momentum_decay": st.floats(0, 0.1),
}


@st.composite
def sweeps(draw: Any) -> Any:
    kind = draw(st.sampled_from(list(KINDS)))
    names = ["lr", "weight_decay", *KINDS[kind]]
    members = draw(st.integers(1, 9))
    alike = {name: draw(NUMBERS[name]) for name in names if draw(st.booleans())}
    flags = {"maximize": draw(st.booleans())}
    if kind in (OPTIM.Adam, OPTIM.AdamW):
        flags["amsgrad"] = draw(st.booleans())
    if kind in (OPTIM.NAdam, OPTIM.RAdam):
        flags["decoupled_weight_decay"] = draw(st.booleans())
    if kind is OPTIM.RMSprop:
        flags["centered"] = draw(st.booleans())
    numbers = [flags | {name: alike.get(name, draw(NUMBERS[name])) for name in names} for _ in range(members)]
    shapes = draw(st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4))
    return kind, numbers, shapes, draw(st.integers(1, len(shapes))), draw(st.integers(0, 2**16))


@settings(max_examples=120)
@given(sweep=sweeps(), data=st.data())
def test_any_sweep_follows_its_solo_runs(pair: Any, sweep: Any, data: st.DataObject) -> None:
    kind, numbers, shapes, split, seed = sweep
    both = pair(kind, numbers, shapes=shapes, split=split, seed=seed)
    both.steps(data.draw(st.integers(1, 8)))
    kept = data.draw(st.lists(st.integers(0, len(numbers) - 1), min_size=1, unique=True))
    both.keep(kept)
    both.steps(3)
    for k, solo in enumerate(both.solos):
        saved = both.optimizer.member_state_dict(k)
        solo.load_state_dict(saved)
        both.optimizer.load_member_state_dict(k, saved)
    both.steps(3)
    assert both.distance() < 1e-11
    both.check_states(1e-8)


STEPS = """
import sys
import torch
from torch import nn
from trainyard.fused.optim import stack_optimizers
from trainyard.optim import Lion, build, without_dynamo

for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad,
             torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, Lion):
    params = [nn.Parameter(torch.ones(3)) for _ in range(4)]
    whole = nn.Parameter(torch.ones(4, 3))
    optimizer = stack_optimizers([build(kind, [param]) for param in params], {params[0]: whole})
    whole.grad = torch.ones(4, 3)
    optimizer.step()
    without_dynamo.UnwrappedStep(optimizer)()
    optimizer.step(skip=torch.tensor([True, False, False, True]))
    optimizer.load_member_state_dict(1, optimizer.member_state_dict(0))
    whole.data = whole.data[:2]
    whole.grad = None
    optimizer.keep(torch.tensor([0, 1]))
assert "torch._dynamo" not in sys.modules
"""


def test_dynamo_is_not_imported() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = forked.run([sys.executable, "-c", STEPS], timeout=LIMIT, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_captured_step_reads_new_numbers(kind: Any) -> None:
    numbers = [{"lr": 0.01 * k, "weight_decay": 0.1} for k in range(1, 5)]
    rates = torch.tensor([0.1, 0.0, 0.05, 0.2], dtype=torch.float64)
    ends = []
    for device in ("cpu", "cuda"):
        draw = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(5, 3, generator=draw).to(device)) for _ in numbers]
        grad = torch.randn(4, 5, 3, generator=draw).to(device)
        whole = nn.Parameter(torch.stack([param.detach() for param in params]))
        solos = [
            build(functools.partial(kind, **kwargs), [param]) for kwargs, param in zip(numbers, params, strict=True)
        ]
        optimizer = stack_optimizers(solos, {params[0]: whole})
        whole.grad = grad
        optimizer.step()
        if device == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()  # captured, not done
            step = graph.replay
        else:
            step = optimizer.step
        for _ in range(3):
            step()
        optimizer.param_groups[0].update(lr=rates)
        assert not optimizer.refresh()
        for _ in range(3):
            step()
        ends.append(whole.detach().cpu())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)
