"""A real Ray cluster on this machine, for tests: three nodes, of which two have a CPU.

    python ray_cluster.py [HIDDEN ...]

Nodes with a CPU see nothing of the folders that are HIDDEN: each has a mount namespace of its own, where an empty file
system is over them, and over Ray's own folder.

Prints its address, and the one for clients. Then a line of its input is a command: `add` adds a node with a
CPU; anything else is the id of a node, which is removed. It answers each with `done`, and ends with its input.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

_RAY = Path("/tmp/ray")  # Ray's own; the path of a socket in it must be short
_PRIVATE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


class Nodes:
    """Nodes of a cluster that have a CPU.

    Args:
        cluster: the cluster.
        hidden: folders that they do not see.
    """

    def __init__(self, cluster: Cluster, hidden: Sequence[str]) -> None:
        self._cluster = cluster
        self._hidden = hidden
        self._private: dict[str, subprocess.Popen[bytes]] = {}
        self._names = (f"private{index}" for index in itertools.count())

    def add(self, count: int = 1) -> None:
        """Add nodes."""
        if not self._hidden:
            for _ in range(count):
                self._cluster.add_node(num_cpus=1)
            return
        mounts = [f"mount -t tmpfs tmpfs {folder}" for folder in [*self._hidden, _RAY]]
        start = f"{sys.executable} -m ray.scripts.scripts start --block --address={self._cluster.address} --num-cpus=1"
        names = list(itertools.islice(self._names, count))
        processes = {
            name: subprocess.Popen(
                [*_PRIVATE, "bash", "-c", " && ".join([*mounts, f"exec {start} --resources='{{\"{name}\": 1}}'"])],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                start_new_session=True,
            )
            for name in names
        }
        while not (found := _named(names)).keys() >= set(names):
            if any(process.poll() is not None for process in processes.values()):
                raise RuntimeError("a node did not start")
            time.sleep(0.1)
        self._private.update({found[name]: process for name, process in processes.items()})

    def remove(self, node: str) -> None:
        """Remove a node without a warning."""
        if (process := self._private.pop(node, None)) is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return
        found = next(each for each in self._cluster.worker_nodes if each.node_id == node)
        self._cluster.remove_node(found, allow_graceful=False)

    def end(self) -> None:
        """Remove all that are processes of their own."""
        for node in list(self._private):
            self.remove(node)


def _named(names: Sequence[str]) -> dict[str, str]:
    """Return the id of each node that has one of these as a resource."""
    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
    return {name: node["NodeID"] for node in nodes for name in names if name in node["Resources"]}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is no answer
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (its name) - others do not starve the agents
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else `ray start` makes a token in the user's folder
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
        client, environments = one.getsockname()[1], other.getsockname()[1]
    # The server for clients has to know the other port when it starts.
    ports = {"ray_client_server_port": client, "runtime_env_agent_port": environments}
    head = {"num_cpus": 0, "include_dashboard": False, **ports}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = Nodes(cluster, sys.argv[1:])
    try:
        if sys.argv[1:]:
            ray.init(cluster.address, log_to_driver=False)
        nodes.add(2)
        print(cluster.address, f"ray://{cluster.address.partition(':')[0]}:{client}", file=answers, flush=True)
        for line in sys.stdin:
            if line.strip() == "add":
                nodes.add()
            else:
                nodes.remove(line.strip())
            print("done", file=answers, flush=True)
    finally:
        nodes.end()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
