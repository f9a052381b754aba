"""Without torch's kernels the members of a stack step as their own optimizers do, up to rounding."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from trainyard._fast_paths import use_fast_paths
from trainyard.fused.optim import adagrad, adam


@pytest.fixture(autouse=True)
def _off() -> Iterator[Any]:
    use_fast_paths(False)
    yield
    use_fast_paths(True)


@pytest.mark.parametrize("equal", [True, False], ids=["equal", "unequal"])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_members_step_as_alone(pair: Any, kind: Any, equal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for family in (adam.StackedAdam, adagrad.StackedAdagrad):
        monkeypatch.setattr(family, "_call", None)  # what calls the kernel
    numbers = [{"lr": 0.01 if equal else 0.01 * k, "weight_decay": 0.1, "fused": True} for k in range(1, 5)]
    it = pair(kind, numbers, dtype=torch.float32)
    it.steps(5)
    assert it.distance() < 1e-5
    it.steps(2, without=(1,))
    it.keep([0, 2])
    it.steps(2)
    assert it.distance() < 1e-5
