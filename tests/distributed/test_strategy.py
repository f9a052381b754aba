"""A strategy of one device."""

from __future__ import annotations

import pytest
import torch

from trainyard.distributed import Strategy


@pytest.mark.parametrize(("name", "current"), [("cuda:1", ["cuda:1"]), ("cuda", []), ("cpu", [])])
def test_the_device_of_the_run_is_the_current_one(
    monkeypatch: pytest.MonkeyPatch, name: str, current: list[str]
) -> None:
    """Streams, events and copies to the host are those of the current device where nothing else is said."""
    found: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: found.append(str(device)))
    assert Strategy().begin(torch.device(name)) == torch.device(name)
    assert found == current
