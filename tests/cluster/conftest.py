"""A real Slurm and a real Ray for the tests of this folder; `bash scripts/slurm.sh fetch` unpacks the former once.

And the bits that sweeps on a cluster are to have.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_sweeps import bits
from ray_sweeps import RayCluster, finish, start

ROOT = Path(__file__).parents[2]

os.environ["RAY_AUTH_MODE"] = "disabled"  # else Ray makes a token in the user's folder


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Tests of this folder share a cluster, and so a process."""
    for item in items:
        if Path(item.path).is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("slurm"))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of processes that use the cluster."""
    state = tmp_path_factory.mktemp("slurm")
    process = subprocess.Popen(
        ["bash", ROOT / "scripts/slurm.sh", "run", "bash", "-c", "env -0 > $0/env; echo ready; read", state],
        env={**os.environ, "TRAINYARD_SLURM_STATE": str(state)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        _, told = process.communicate()
        pytest.skip(f"no Slurm: {told.strip().removeprefix('slurm: ')}")
    variables = (state / "env").read_text().split("\0")
    yield dict(line.split("=", 1) for line in variables if "=" in line)
    process.communicate("end\n", timeout=60)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A Ray cluster. Its hidden nodes see neither these folders nor the code, and no scratch of each other."""
    code = [ROOT / name for name in ("src", "conf", "tests", ".git") if (ROOT / name).is_dir()]
    made = RayCluster(*map(str, [tmp_path_factory.getbasetemp(), *code]))
    yield made
    made.end()


@pytest.fixture(scope="session")
def hidden(cluster: RayCluster) -> RayCluster:
    """The cluster with two nodes that share no disk with this machine."""
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("nodes cannot have mount namespaces of their own here")
    cluster.do("hide 2")
    return cluster


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that all nodes see: a storage, and the sign for slow jobs."""
    with tempfile.TemporaryDirectory(prefix="trainyard-shared-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bits of the sweep on this machine."""
    directory = tmp_path_factory.mktemp("local") / "sweep"
    finish(directory, start(directory, ""))
    return bits(directory)
