"""Sweeps on a real Ray cluster of three nodes: they give the bits of the local launcher, whatever happens to nodes."""

from __future__ import annotations

import os
import signal
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cluster_sweeps import LIMIT, assert_same, begun, bits, output, slots, wait_for
from ray_sweeps import RayCluster, finish, node_of, start

from trainyard.errors import ConfigError, TrainyardError
from trainyard.sweep.executor import ray_pool
from trainyard.sweep.executor.ray_pool import RayPool, Request

if find_spec("ray") is None:
    pytest.skip("Ray is not installed: bash scripts/test_ray.sh", allow_module_level=True)


@pytest.fixture(scope="module")
def steady(cluster: RayCluster) -> RayCluster:
    """The cluster with two nodes that stay."""
    cluster.do("add")
    cluster.do("add")
    return cluster


def agents(directory: Path) -> dict[int, str]:
    """The node of each process of an agent of a sweep, its fork server and its workers included."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environ = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        variables = dict(line.split(b"=", 1) for line in environ if b"=" in line)
        if variables.get(b"GO") == os.fsencode(directory.parent / "go") and b"TRAINYARD_RAY_NODE" in variables:
            found[int(path.name)] = variables[b"TRAINYARD_RAY_NODE"].decode()
    return found


def test_a_sweep_on_nodes_that_come_and_go_has_the_bits_of_the_local_launcher(
    cluster: RayCluster, tmp_path: Path, local: Any
) -> None:
    """An autoscaler adds as many nodes as there are slots, and removes them afterwards; each run knows where it ran."""
    directory = tmp_path / "sweep"
    process = start(directory, cluster.address, "hydra.launcher.autoscaling=true", nodes="grown")
    wait_for(lambda: slots(directory, "gained") == 2, process)
    finish(directory, process)
    assert_same(bits(directory), local)
    assert sorted(path.name for path in (directory / "ray").iterdir()) == ["0.out", "1.out"]
    assert len({node_of(directory, num) for num in range(4)}) == 2
    assert not agents(directory)
    wait_for(lambda: cluster.count("grown") == 0)


def test_what_nodes_and_heads_meet_with_changes_no_bit(steady: RayCluster, tmp_path: Path, local: Any) -> None:
    """A node is removed, another one comes, and then the head is killed and started again."""
    directory = tmp_path / "sweep"
    process = start(directory, steady.address)
    try:
        wait_for(lambda: begun(directory, 0) and begun(directory, 1), process)
        removed = node_of(directory, 0)
        steady.do(f"kill {removed}")
        wait_for(lambda: slots(directory, "lost") == 1, process)
        assert removed not in agents(directory).values()
        steady.do("add")
        wait_for(lambda: slots(directory, "gained") == 3, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        text = output(process)
    assert "is lost: its node has died" in text or "is lost: its node was" in text, text
    text = finish(directory, start(directory, steady.address))
    assert "of the previous head to end." in text
    assert_same(bits(directory), local)
    assert not agents(directory)


# Bad input


def test_resources_that_no_node_has(steady: RayCluster, tmp_path: Path) -> None:
    """What there is, is told; with autoscaling they may come."""
    request = Request(num_gpus=1, resources={"disk": 2})
    with pytest.raises(TrainyardError) as error:
        RayPool(tmp_path, steady.address, request, 1).check()
    assert "No node of the Ray cluster has CPU: 1, GPU: 1, disk: 2" in str(error.value)
    assert "1 x (no resources)" in str(error.value)
    assert "x (CPU: 1, steady: 1)" in str(error.value)
    pool = RayPool(tmp_path, steady.address, request, 1, autoscaling=True)
    pool.check()
    pool.close()
    assert not list(tmp_path.iterdir())


def test_clusters_are_found_by_each_kind_of_address(steady: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of this machine, that of the environment, here as a client, and one of the sweep's own."""
    monkeypatch.setattr(ray_pool, "REACH", LIMIT)  # on a busy machine, Ray's client takes long
    assert sum("steady" in node for node in nodes("auto")) == 2
    monkeypatch.setenv("RAY_ADDRESS", steady.client_address)
    assert sum("steady" in node for node in nodes("auto")) == 2
    monkeypatch.delenv("RAY_ADDRESS")
    (own,) = nodes("local")
    assert own["CPU"] >= 1
    assert "steady" not in own


def nodes(address: str) -> list[dict[str, float]]:
    """The nodes of a cluster, as a pool finds them."""
    pool = RayPool(Path(), address, Request(), 1)
    try:
        return pool._connect()
    finally:
        pool.close()


def test_no_cluster_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing answers, or what answers is not Ray: neither hangs."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"address: '{address}' is invalid. Expected .* Connection refused"):
            RayPool(tmp_path, address, Request(), 1).check()
        silent.listen()
        monkeypatch.setattr(ray_pool, "REACH", 2.0)
        with pytest.raises(ConfigError, match="The Ray cluster did not respond within 2 seconds"):
            RayPool(tmp_path, f"ray://{address}", Request(), 1).check()


def test_a_cluster_that_was_killed_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray has noted it as that of this machine; its folder of such notes is another one here."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
        monkeypatch.setattr(ray_pool, "REACH", 40.0)
        with pytest.raises(ConfigError, match=r"address: 'auto' is invalid. Expected .* Connection refused"):
            RayPool(tmp_path, "auto", Request(), 1).check()


def test_agents_that_end_before_they_reach_the_head_end_the_sweep(steady: RayCluster, tmp_path: Path) -> None:
    pool = RayPool(tmp_path, steady.address, Request(), 2)
    pool.check()
    pool.start([sys.executable, "-c", "print('no such module'); raise SystemExit(1)"])

    def again() -> bool:
        pool.want(2)
        return bool(pool.gone()) and False

    with pytest.raises(TrainyardError, match=r"3 agents ended .* ended with status 1, and printed: no such module"):
        wait_for(again)
    pool.close()
