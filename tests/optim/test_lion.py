"""Lion against the paper's algorithm, written out number by number."""

from __future__ import annotations

import copy
import doctest
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import trainyard.optim.lion
from trainyard.errors import ConfigError
from trainyard.optim import Lion

SHAPES = [(3, 4), (5,), (2, 1, 3), ()]


def parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def gradients(step: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def written_out(
    params: list[Tensor], steps: int, lr: float, betas: tuple[float, float], weight_decay: float, maximize: bool
) -> list[Tensor]:
    """Algorithm 2 of Chen et al. (2023), in plain Python."""
    numbers = [param.detach().flatten().tolist() for param in params]
    momenta = [[0.0] * len(flat) for flat in numbers]
    for step in range(steps):
        for flat, momentum, grad in zip(numbers, momenta, gradients(step), strict=True):
            for index, slope in enumerate(grad.flatten().tolist()):
                slope = -slope if maximize else slope
                mixed = betas[0] * momentum[index] + (1 - betas[0]) * slope
                sign = (mixed > 0) - (mixed < 0)
                flat[index] = flat[index] - lr * (sign + weight_decay * flat[index])
                momentum[index] = betas[1] * momentum[index] + (1 - betas[1]) * slope
    return [
        torch.tensor(flat, dtype=torch.float64).reshape(param.shape)
        for flat, param in zip(numbers, params, strict=True)
    ]


def run(optimizer: Lion, params: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        for param, grad in zip(params, gradients(step, params[0].dtype), strict=True):
            param.grad = grad
        optimizer.step()


@settings(max_examples=30)
@given(
    lr=st.floats(1e-5, 0.1),
    betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    weight_decay=st.sampled_from([0.0, 0.1, 1.0]),
    maximize=st.booleans(),
    foreach=st.booleans(),
    tensor=st.booleans(),
)
def test_equals_the_algorithm_written_out(
    lr: float, betas: tuple[float, float], weight_decay: float, maximize: bool, foreach: bool, tensor: bool
) -> None:
    params = parameters()
    expected = written_out(params, 6, lr, betas, weight_decay, maximize)
    rate = torch.tensor(lr, dtype=torch.float64) if tensor else lr
    optimizer = Lion(params, rate, betas, weight_decay, maximize=maximize, foreach=foreach)
    run(optimizer, params, range(6))
    torch.testing.assert_close([param.detach() for param in params], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_foreach_and_one_by_one_give_the_same_bits(dtype: torch.dtype) -> None:
    results = []
    for foreach in (True, False):
        params = parameters(dtype=dtype)
        run(Lion(params, 1e-2, weight_decay=0.1, foreach=foreach), params, range(5))
        results.append([param.detach() for param in params])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_its_state_goes_through_a_checkpoint() -> None:
    whole, half = parameters(), parameters()
    run(Lion(whole, 1e-2), whole, range(8))
    before = Lion(half, 1e-2)
    run(before, half, range(3))
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after = Lion(half, 1e-2)
    after.load_state_dict(torch.load(file, weights_only=True))
    run(after, half, range(3, 8))
    torch.testing.assert_close(half, whole, rtol=0, atol=0)
    assert copy.deepcopy(after).state_dict().keys() == {"state", "param_groups"}


def test_groups_closure_and_parameters_without_a_gradient() -> None:
    moved, still, other = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = Lion([{"params": [moved, still]}, {"params": [other], "lr": 0.5}], lr=0.25)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (moved + other).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4
    assert moved.tolist() == [0.75, 0.75]
    assert other.tolist() == [0.5, 0.5]
    assert still.tolist() == [1, 1]
    assert still not in optimizer.state


def test_it_learns() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    y = x @ torch.tensor([1.0, -2.0, 3.0, 0.5])
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = Lion([weight], lr=0.003)
    for _ in range(1500):
        optimizer.zero_grad()
        (x @ weight - y).square().mean().backward()
        optimizer.step()
    assert (x @ weight - y).square().mean() < 0.01


def test_what_it_does_not_take() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    weight.grad = torch.zeros_like(weight)
    with pytest.raises(RuntimeError, match="complex"):
        Lion([weight]).step()
    table = torch.nn.Embedding(3, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        Lion(table.parameters()).step()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", -1e-3),
        ("lr", "fast"),
        ("lr", float("nan")),
        ("lr", None),
        ("betas", [0.9, 1.0]),
        ("betas", [-0.1, 0.9]),
        ("betas", [0.9]),
        ("betas", 0.9),
        ("betas", [0.9, "x"]),
        ("weight_decay", -1),
    ],
)
def test_bad_numbers(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Lion(parameters(), **{key: value})
    assert caught.value.key == key


def test_the_example_runs() -> None:
    assert doctest.testmod(trainyard.optim.lion).failed == 0
