"""K solo optimizers beside one stacked one."""

import functools
import math
from typing import Any

import pytest
import torch
from torch import nn

from trainyard.fused.optim import stack_optimizers
from trainyard.optim import build

SHAPES = [(5, 3), (3,), (), (2, 3, 2)]
SPLIT = 2  # the first two parameters are one group, the others the second


class Pair:
    """K solo optimizers beside one stacked one, on the same numbers, parameters and gradients."""

    def __init__(
        self,
        kind: Any,
        numbers: Any,
        dtype: Any = torch.float64,
        shapes: Any = SHAPES,
        split: Any = SPLIT,
        seed: int = 0,
    ) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.kind, self.dtype = kind, dtype
        members = len(numbers)
        self.stacked = [nn.Parameter(self.random(members, *shape)) for shape in shapes]
        self.params = [[nn.Parameter(p.detach()[k].clone()) for p in self.stacked] for k in range(members)]
        self.split = split
        self.solos = [self.solo(params, kwargs) for params, kwargs in zip(self.params, numbers, strict=True)]
        self.stack()

    def stack(self) -> None:
        """Stack the solo optimizers as they are now."""
        self.optimizer = stack_optimizers(self.solos, dict(zip(self.params[0], self.stacked, strict=True)))

    def solo(self, params: Any, kwargs: Any) -> Any:
        second = {"params": params[self.split :], "lr": kwargs.get("lr", 1e-2) * 0.5}
        if kwargs.get("weight_decay", 0):
            second["weight_decay"] = 0.0
        groups = [{"params": params[: self.split]}, second] if self.split < len(params) else [{"params": params}]
        return build(functools.partial(self.kind, **kwargs), groups)

    def random(self, *shape: Any) -> Any:
        return torch.randn(*shape, generator=self.draw, dtype=torch.float64).to(self.dtype)

    def gradients(self, without: Any = ()) -> None:
        for index, param in enumerate(self.stacked):
            param.grad = None if index in without else self.random(*param.shape)
            for k, params in enumerate(self.params):
                params[index].grad = None if param.grad is None else param.grad[k].clone()

    def steps(self, count: Any, without: Any = ()) -> None:
        for _ in range(count):
            self.gradients(without)
            for solo in self.solos:
                solo.step()
            self.optimizer.step()

    def write(self, **numbers: Any) -> None:
        """Numbers `[K]` (or a tuple of two) into all groups, as a schedule writes them."""
        for index, group in enumerate(self.optimizer.param_groups):
            group.update(numbers)
            for k, solo in enumerate(self.solos):
                for key, value in numbers.items():
                    member = tuple(v[k].item() for v in value) if isinstance(value, tuple) else value[k].item()
                    solo.param_groups[index][key] = member

    def keep(self, kept: Any) -> None:
        for param in self.stacked:
            param.data = param.data.index_select(0, torch.tensor(kept))
            param.grad = None
        self.optimizer.keep(torch.tensor(kept))
        self.params = [self.params[k] for k in kept]
        self.solos = [self.solos[k] for k in kept]

    def distance(self) -> Any:
        """The largest difference of any parameter, relative to the largest number in it (at least 1)."""
        found = 0.0
        for k, params in enumerate(self.params):
            for param, stack in zip(params, self.stacked, strict=True):
                if not param.numel():
                    continue
                scale = max(1.0, param.detach().abs().max().item())
                difference = (stack.detach()[k] - param.detach()).abs().max().item()
                found = math.nan if math.isnan(difference) else max(found, difference / scale)
        return found

    def check_a_nan(self, member: int, steps: int, tolerance: float) -> None:
        """Take steps in which all gradients of one member are NaN: the others train as they do alone."""
        for _ in range(steps):
            self.gradients()
            for index, param in enumerate(self.stacked):
                param.grad[member] = math.nan
                self.params[member][index].grad.fill_(math.nan)
            for solo in self.solos:
                solo.step()
            self.optimizer.step()
        for params, whole in zip(zip(*self.params, strict=True), self.stacked, strict=True):
            torch.testing.assert_close(torch.stack(params), whole, rtol=tolerance, atol=tolerance, equal_nan=True)
        others = [k for k in range(len(self.solos)) if k != member]
        assert all(whole[others].isfinite().all() for whole in self.stacked)

    def check_states(self, tolerance: float = 1e-9) -> None:
        for k, solo in enumerate(self.solos):
            assert_same_state(self.optimizer.member_state_dict(k), solo.state_dict(), tolerance)


def assert_same_state(found: Any, expected: Any, tolerance: Any) -> None:
    for mine, theirs in zip(found["param_groups"], expected["param_groups"], strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert mine[key] == value, key
            assert type(mine[key]) is type(value) or isinstance(mine[key], float), key
    assert found["state"].keys() == expected["state"].keys()
    for index, theirs in expected["state"].items():
        mine = found["state"][index]
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            assert mine[key].dtype == value.dtype, key
            assert mine[key].shape == value.shape, key
            torch.testing.assert_close(mine[key], value, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="session")
def pair() -> Any:
    """Makes a `Pair`."""
    return Pair


@pytest.fixture(scope="session")
def assert_same() -> Any:
    """Compares two state dicts."""
    return assert_same_state
