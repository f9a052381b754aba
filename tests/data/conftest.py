"""What the tests of data share."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture
def untouched_rngs() -> Iterator[Any]:
    """Fails the test if it moves a global generator of this process."""
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    np.random.randn()  # a second normal number is now kept aside: part of the state
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    after = random.getstate(), np.random.get_state(), torch.get_rng_state()
    assert before[0] == after[0]
    assert all(np.array_equal(old, new) for old, new in zip(before[1], after[1], strict=True))
    assert torch.equal(before[2], after[2])
