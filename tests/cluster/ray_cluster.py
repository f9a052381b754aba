"""A real Ray cluster on this machine, for tests. Its head node has no CPU.

    python ray_cluster.py [HIDDEN ...]

Prints its address, and the one for clients. Then a line of its input is a command; it answers with `done` or a number:

    add      adds a node with a CPU, and the resource `steady`
    hide N   adds N, with the resource `hidden`, that see nothing of the folders that are HIDDEN: each has a mount
             namespace of its own, where an empty file system is over them, and over Ray's own folder
    kill ID  removes the node of this id without a warning
    count R  is answered with the number of nodes that have the resource R

It ends with its input. Ray's autoscaler adds nodes with the resource `grown` while actors wait for some, two at most,
and removes them when they have been idle for some seconds.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

_RAY = Path("/tmp/ray")  # Ray's own; the path of a socket in it must be short
_PRIVATE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
_BECOME_SUBREAPER = 36
_IDLE = 4.0  # seconds after which the autoscaler removes a node
_MEMORY = 80_000_000  # bytes of a node's object store
_NONE = (
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
)
_ENVIRONMENT = {
    "RAY_worker_niceness": "0",  # others do not starve the agents
    "RAY_AUTH_MODE": "disabled",  # else `ray start` makes a token in the user's folder
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",  # its nodes are processes
}


def autoscaling(address: str) -> dict[str, Any]:
    """Return the configuration of an autoscaler whose nodes are processes of this machine."""
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    grown = {"CPU": 1, "grown": 1, "object_store_memory": _MEMORY}
    return {
        "cluster_name": "trainyard",
        "max_workers": 2,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": head,
            "grown": {"resources": grown, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": _IDLE / 60,
        "auth": {},
        "file_mounts_sync_continuously": False,
        **{name: {} for name in ("file_mounts", "head_node", "worker_nodes")},
        **{name: [] for name in _NONE},
    }


class Nodes:
    """Nodes of a cluster that have a CPU.

    Args:
        cluster: the cluster.
        hidden: folders that some do not see.
    """

    def __init__(self, cluster: Cluster, hidden: Sequence[str]) -> None:
        self._cluster = cluster
        self._hidden = hidden
        self._private: dict[str, subprocess.Popen[bytes]] = {}
        self._names = (f"private{index}" for index in itertools.count())

    def add(self) -> None:
        """Add a node."""
        self._cluster.add_node(num_cpus=1, resources={"steady": 1}, object_store_memory=_MEMORY)

    def hide(self, count: int) -> None:
        """Add nodes that see nothing of the hidden folders."""
        mounts = [f"mount -t tmpfs tmpfs {folder}" for folder in [*self._hidden, _RAY]]
        start = f"{sys.executable} -m ray.scripts.scripts start --block --address={self._cluster.address} --num-cpus=1"
        names = list(itertools.islice(self._names, count))
        processes = {}
        for name in names:
            own = f"exec {start} --resources='{json.dumps({name: 1, 'hidden': 1})}'"
            processes[name] = subprocess.Popen(
                [*_PRIVATE, "bash", "-c", " && ".join([*mounts, own])],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                start_new_session=True,
            )
        while not (found := self._named(names)).keys() >= set(names):
            if any(process.poll() is not None for process in processes.values()):
                raise RuntimeError("a node did not start")
            time.sleep(0.1)
        self._private.update({found[name]: process for name, process in processes.items()})

    def count(self, resource: str) -> int:
        """Return how many nodes have a resource."""
        return sum(resource in node["Resources"] for node in self._alive())

    def _named(self, names: Sequence[str]) -> dict[str, str]:
        """Return the id of each node that has one of these as a resource."""
        return {name: node["NodeID"] for node in self._alive() for name in names if name in node["Resources"]}

    def _alive(self) -> list[dict[str, Any]]:
        return [node for node in self._cluster.global_state.node_table() if node["Alive"]]

    def kill(self, node: str) -> None:
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
            self.kill(node)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is no answer
    os.environ.update(_ENVIRONMENT)
    ctypes.CDLL(None).prctl(_BECOME_SUBREAPER, 1)  # of the nodes that the autoscaler starts
    with tempfile.NamedTemporaryFile("w", suffix=".json") as config:
        cluster = Cluster()
        ports = _free_ports(3)
        address = f"{ray.util.get_node_ip_address()}:{ports[0]}"
        json.dump(autoscaling(address), config)
        config.flush()
        cluster.add_node(
            num_cpus=0,
            include_dashboard=False,
            object_store_memory=_MEMORY,
            gcs_server_port=ports[0],
            ray_client_server_port=ports[1],
            runtime_env_agent_port=ports[2],  # the server for clients has to know it when it starts
            autoscaling_config=config.name,
        )
        nodes = Nodes(cluster, sys.argv[1:])
        try:
            print(address, f"ray://{address.partition(':')[0]}:{ports[1]}", file=answers, flush=True)
            for line in sys.stdin:
                answer: object = "done"
                match line.split():
                    case ["add"]:
                        nodes.add()
                    case ["hide", count]:
                        nodes.hide(int(count))
                    case ["kill", node]:
                        nodes.kill(node)
                    case ["count", resource]:
                        answer = nodes.count(resource)
                print(answer, file=answers, flush=True)
        finally:
            nodes.end()
            cluster.shutdown()
            _kill_children()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _kill_children() -> None:
    for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)


if __name__ == "__main__":
    main()
