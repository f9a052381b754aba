"""Connections to a Ray cluster whose head node is busy; a module stands in for Ray, with the errors of its client."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainyard.errors import ConfigError, TrainyardError
from trainyard.quoting import shell_override
from trainyard.sweep.executor import ray_pool
from trainyard.sweep.executor.ray_pool import RayPool, Request
from trainyard.sweep.executor.ray_process import ATTEMPTS, AgentActor

RAY = """
import sys
import time
from pathlib import Path

tries = Path(__file__).with_name("tries")

def init(address, **options):
    tries.write_text(tries.read_text() + "x")
    if len(tries.read_text()) <= {failures}:
        raise ConnectionAbortedError("Initialization failure from server:\\nTraceback (most recent call):\\n{error}")
    time.sleep({slow})

def nodes():
    return [{{"Alive": True, "Resources": {{"CPU": 1.0}}}}]

def remote(actor):
    return actor

def shutdown():
    pass
"""
BUSY = "RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for detailed logs."


@pytest.fixture
def address() -> Iterator[str]:
    """The address of a server that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"ray://127.0.0.1:{server.getsockname()[1]}"


def connect(
    folder: Path, monkeypatch: pytest.MonkeyPatch, address: str, failures: int, error: str, slow: int = 0
) -> int:
    """Connect, and return the number of attempts."""
    monkeypatch.syspath_prepend(str(folder))
    (folder / "ray.py").write_text(RAY.format(failures=failures, error=error, slow=slow))
    (folder / "tries").touch()
    pool = RayPool(folder, address, Request(), 1)
    try:
        assert pool._connect() == [{"CPU": 1.0}]
    finally:
        if pool._process is not None:
            pool._kill()
    return len((folder / "tries").read_text())


def test_a_busy_server_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    assert connect(tmp_path, monkeypatch, address, 2, BUSY) == 3


def test_a_server_that_stays_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    told = rf"could not start a process for this command in {ATTEMPTS} attempts: RuntimeError: Starting Ray client"
    with pytest.raises(ConfigError, match=told):
        connect(tmp_path, monkeypatch, address, 99, BUSY)
    assert len((tmp_path / "tries").read_text()) == ATTEMPTS


def test_the_time_limit_names_the_last_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(ray_pool, "REACH", 4.0)
    told = (
        r"did not respond within 4 seconds\. The last attempt failed: RuntimeError: Starting Ray client server failed"
    )
    with pytest.raises(ConfigError, match=told):
        connect(tmp_path, monkeypatch, address, 1, BUSY, slow=60)


def test_other_errors_are_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    with pytest.raises(ConfigError, match="ValueError: the versions differ"):
        connect(tmp_path, monkeypatch, address, 99, "ValueError: the versions differ")
    assert len((tmp_path / "tries").read_text()) == 1


def test_a_cluster_that_cannot_be_started_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = r"^Ray could not start a cluster here \(hydra\.launcher\.address=local\): ValueError: no memory\.$"
    with pytest.raises(TrainyardError, match=told):
        connect(tmp_path, monkeypatch, "local", 99, "ValueError: no memory")


def test_ray_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ray.py").write_text("raise ImportError('no libstdc++')")
    with pytest.raises(TrainyardError, match=r"^Ray could not be imported: ImportError: no libstdc\+\+\.$"):
        RayPool(tmp_path, "auto", Request(), 1).check()


@pytest.mark.parametrize("has_file", [True, False])
def test_a_connection_that_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, has_file: bool
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ray.py").write_text(RAY.format(failures=0, error="", slow=0))
    (tmp_path / "tries").touch()
    pool = RayPool(tmp_path / "my sweep", address, Request(), 1)
    pool.check()
    try:
        assert pool._process is not None
        pool._process.kill()
        pool._process.wait()
        how = f"run `trainyard sweep resume '{tmp_path}/my sweep'`"
        if not has_file:
            monkeypatch.delattr(sys.modules["__main__"], "__file__")
            how = f"use the same command with {shell_override('hydra.sweep.dir', tmp_path / 'my sweep')}"
        told = rf"^The connection to the Ray cluster was lost: .* To continue the sweep, {re.escape(how)}\.$"
        with pytest.raises(TrainyardError, match=told):
            all(pool.gone() == {} for _ in iter(int, 1))
    finally:
        pool.close()


def test_a_node_that_does_not_see_the_folders_of_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray.py").write_text("class get_runtime_context:\n    def get_node_id(self):\n        return '1'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    log = tmp_path / "sweep/ray/0.out"
    try:
        _, status, said = AgentActor().run([sys.executable, "-c", ""], str(tmp_path), str(log), {}, None, 0)
    finally:
        sys.modules.pop("ray", None)
    assert status == 1
    hint = "Nodes that do not share the disk of the head need hydra.launcher.storage."
    assert said == f"the node cannot open {log}: No such file or directory. {hint}"


def test_an_address_of_the_environment_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match=rf"'auto' is invalid.* RAY_ADDRESS={address}: Connection refused\.$"):
            connect(tmp_path, monkeypatch, "auto", 0, "")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("", r"its actor died\.$"),
        ("one\nModuleNotFoundError: No module named 'torch'.\n", r"its actor died, and printed: ModuleNotFoundError: "
         r"No module named 'torch'\. Its output is in \S+/ray/2\.out\.$"),
    ],
)  # fmt: skip
def test_agents_that_end_at_once_are_told_with_the_file_of_their_output(tmp_path: Path, said: str, told: str) -> None:
    pool = RayPool(tmp_path, "auto", Request(), 1)
    pool._left("0", "its actor died", said)
    pool._left("1", "its actor died", said)
    with pytest.raises(TrainyardError, match=rf"^3 agents ended before .* The last one: {told}"):
        pool._left("2", "its actor died", said)
