"""Sweeps on a Ray cluster of this machine, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from cluster_sweeps import JOBS, LIMIT, LONG, ROOT, ends, output

CLUSTER = ROOT / "tests/cluster"


class RayCluster:
    """A cluster whose head node has no CPU.

    Args:
        *hidden: folders that some of its nodes do not see.
    """

    def __init__(self, *hidden: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, CLUSTER / "ray_cluster.py", *hidden],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.address, self.client_address = self._answer().split()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def do(self, command: str) -> None:
        """Obey a command of `ray_cluster.py`: `add`, `hide N` or `kill ID`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._answer() == "done\n"

    def count(self, resource: str) -> int:
        """Return how many nodes have a resource."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"count {resource}\n")
        self._process.stdin.flush()
        return int(self._answer())

    def end(self) -> None:
        self._process.communicate(timeout=LIMIT)


def start(
    directory: Path, address: str, *arguments: str, nodes: str = "steady", go: Path | None = None
) -> subprocess.Popen[str]:
    """Start a sweep of long jobs; an empty address stands for the local launcher.

    Args:
        directory: the sweep's.
        address: of the cluster.
        *arguments: further ones of the command.
        nodes: the resource of the nodes that it runs on.
        go: the file that ends the jobs; None for `go` beside the sweep.
    """
    own = [f"hydra.launcher.address={address}", "hydra.launcher.head_address=127.0.0.1", "hydra.launcher.max_slots=2"]
    own.append(f"hydra.launcher.resources={{{nodes}:1}}")
    launcher = ["hydra/launcher=ray", *own] if address else ["hydra/launcher=local"]
    sweep = [f"hydra.sweep.dir={directory}", "tracker=none", "hydra.launcher.fuse=off"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *launcher, *sweep, *JOBS, *LONG, *arguments],
        cwd=directory.parent,
        env={**os.environ, "PYTHONPATH": str(CLUSTER), "GO": str(go or directory.parent / "go")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(directory: Path, process: subprocess.Popen[str], go: Path | None = None) -> str:
    """Let a sweep end, and return what it printed."""
    (go or directory.parent / "go").touch()
    text = output(process)
    assert process.returncode == 0, text
    assert ends(directory) == dict.fromkeys(range(4), 1)
    return text


def node_of(directory: Path, num: int) -> str:
    """The node that a job ran on, as its `run.json` says."""
    return str(json.loads((directory / str(num) / "run.json").read_text())["facts"]["ray.node"])
