"""A sweep on a real Ray cluster whose nodes share no disk with the head: files come home through a server of S3."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cluster_sweeps import assert_same, bits, slots, wait_for
from ray_sweeps import RayCluster, finish, start

if missing := [name for name in ("ray", "s3fs", "moto") if find_spec(name) is None]:
    pytest.skip(f"{missing[0]} is not installed: bash scripts/test_ray.sh", allow_module_level=True)

import s3fs  # type: ignore[import-not-found,import-untyped,unused-ignore]
from moto.server import ThreadedMotoServer  # type: ignore[import-not-found,import-untyped,unused-ignore]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server, with a bucket; the environment says where it is, in the way of fsspec."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("FSSPEC_S3_KEY", "key")
    monkeypatch.setenv("FSSPEC_S3_SECRET", "secret")
    files = s3fs.S3FileSystem(key="key", secret="secret", endpoint_url=f"http://127.0.0.1:{port}")
    files.mkdir("bucket")
    yield files
    server.stop()


def test_a_sweep_through_s3_has_the_bits_of_the_local_launcher(
    hidden: RayCluster, tmp_path: Path, shared: Path, s3: Any, local: Any
) -> None:
    """Nodes have the address and the credentials from the environment of the head; nothing is left in the bucket."""
    directory, go = tmp_path / "sweep", shared / "go"
    process = start(directory, hidden.address, "hydra.launcher.storage=s3://bucket/sweeps", nodes="hidden", go=go)
    wait_for(lambda: slots(directory, "gained") == 2, process)
    assert s3.find("bucket/sweeps")
    finish(directory, process, go)
    assert_same(bits(directory), local)
    s3.invalidate_cache()
    assert s3.find("bucket") == []
