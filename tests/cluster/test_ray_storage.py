"""Sweeps on a real Ray cluster whose nodes share no disk with the head: nodes in mount namespaces of their own."""

from __future__ import annotations

import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cluster_sweeps import assert_same, begun, bits, ends, output, slots, wait_for
from ray_sweeps import RayCluster, finish, node_of, start

if find_spec("ray") is None:
    pytest.skip("Ray is not installed: bash scripts/test_ray.sh", allow_module_level=True)


def test_what_nodes_heads_and_storages_meet_with_changes_no_bit(
    hidden: RayCluster, tmp_path: Path, shared: Path, local: Any
) -> None:
    """A node is removed, the head is killed and started again, and the storage is away when jobs end."""
    directory, store, go = tmp_path / "sweep", shared / "store", shared / "go"
    own = [f"hydra.launcher.storage=file://{store}", "hydra.launcher.patience=10", "hydra.launcher.grace=2"]
    process = start(directory, hidden.address, *own, nodes="hidden", go=go)
    try:
        wait_for(lambda: begun(directory, 0) and begun(directory, 1), process)
        hidden.do(f"kill {(removed := node_of(directory, 0))}")
        hidden.do("hide 1")
        wait_for(lambda: slots(directory, "lost") == 1, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        output(process)
    gained = slots(directory, "gained")
    process = start(directory, hidden.address, *own, nodes="hidden", go=go)
    wait_for(lambda: slots(directory, "gained") == gained + 2, process)
    store.rename(shared / "away")
    store.touch()
    go.touch()
    time.sleep(5)
    store.unlink()
    (shared / "away").rename(store)
    text = finish(directory, process, go)
    assert "A transfer between this machine and the storage failed: " in text
    assert ends(directory) == dict.fromkeys(range(4), 1)
    assert_same(bits(directory), local)
    assert removed not in {node_of(directory, num) for num in range(4)}
    assert list(store.iterdir()) == []
    assert list((directory / "ray").glob("*.out")), "what agents print comes home, too"
