"""The process's random generators, and the seed that decides what a Runner draws from them."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard import rng_state
from trainyard.runner import Runner, checkpoint, copy_tensors

seeds = st.integers(0, 2**63 - 1)


@pytest.fixture(autouse=True)
def _kept() -> Iterator[Any]:
    before = rng_state.state()
    yield
    rng_state.restore(before)


def draw() -> Any:
    """Numbers of every generator; `gauss` and `normal` keep a second one for later."""
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), torch.rand(3).tolist()]


@settings(max_examples=25)
@given(seeds, st.integers(0, 5))
def test_a_state_that_was_put_back_goes_on_as_it_was(seed: Any, drawn: int) -> None:
    rng_state.seed_all(seed)
    for _ in range(drawn):
        draw()
    saved = rng_state.state()
    expected = [draw() for _ in range(3)]
    rng_state.restore(saved)
    assert [draw() for _ in range(3)] == expected


@settings(max_examples=25)
@given(seeds, seeds)
def test_a_seeded_block_leaves_no_trace(seed: Any, inner: Any) -> None:
    rng_state.seed_all(seed)
    expected = [draw(), draw()]
    rng_state.seed_all(seed)
    first = draw()
    with rng_state.seeded(inner):
        within = draw()
    assert [first, draw()] == expected
    with rng_state.seeded(inner):
        assert draw() == within


def test_a_block_that_fails_leaves_no_trace() -> None:
    rng_state.seed_all(1)
    expected = draw()
    rng_state.seed_all(1)
    with pytest.raises(LookupError), rng_state.seeded(2):
        raise LookupError
    assert draw() == expected


def test_every_generator_is_seeded() -> None:
    rng_state.seed_all(1)
    one = draw()
    rng_state.seed_all(2)
    assert all(a != b for a, b in zip(one, draw(), strict=True))


def test_a_checkpoint_can_hold_the_state(tmp_path: Path) -> None:
    random.gauss(0, 1)
    np.random.normal()
    checkpoint.save(tmp_path / "state.pt", {"model": {}, "random": copy_tensors(rng_state.state())})
    expected = draw()
    rng_state.restore(checkpoint.read(tmp_path / "state.pt")["random"])
    assert draw() == expected


@pytest.mark.gpu
def test_the_generators_of_cuda() -> None:
    torch.rand(1, device="cuda")
    saved = copy_tensors(rng_state.state())
    expected = torch.rand(5, device="cuda")
    rng_state.restore(saved)
    assert torch.equal(torch.rand(5, device="cuda"), expected)


def weights_of(runner: Any) -> Any:
    runner.train()
    return torch.cat([tensor.flatten() for tensor in runner.model.state_dict().values()])


@pytest.fixture
def make(parts: Any) -> Any:
    parts["model"]["dropout"] = 0.3
    return lambda **more: Runner(**(parts | more))


def test_the_seed_decides_every_bit(make: Any) -> None:
    one = weights_of(make(seed=1))
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(weights_of(make(seed=1)), one)
    assert not torch.equal(weights_of(make(seed=2)), one)


def test_validating_before_changes_nothing(make: Any) -> None:
    expected = weights_of(make())
    runner = make()
    runner.val()
    assert torch.equal(weights_of(runner), expected)


def test_building_and_rehearsing_leave_the_callers_randomness_alone(make: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    make().val()
    assert torch.equal(torch.rand(2), expected)
