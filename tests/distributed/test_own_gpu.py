"""The GPU of each rank among those that its process may use."""

from __future__ import annotations

import pytest
import torch

from trainyard.distributed.distributed import _own_gpu
from trainyard.errors import TrainyardError


def test_a_rank_has_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Slurm shows a rank only its own GPU, this one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [_own_gpu(rank) for rank in (0, 1)] == [0, 1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert _own_gpu(3) == 0


def test_a_rank_without_a_gpu_is_told_what_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may have more GPUs than are visible, and the run more devices on other machines."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TrainyardError) as error:
        _own_gpu(2)
    assert str(error.value).startswith(
        "The process with local rank 2 has no GPU, because it may use only 2 GPUs. Start at most 2 processes on each "
    )
