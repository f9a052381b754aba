"""A real Ray cluster on this machine, for tests: three nodes, of which two have a CPU.

Prints its address. Then a line of its input is a command: `add` adds a node with a CPU; anything else is the id of a
node, which is removed. It answers each with `done`, and ends with its input.
"""

from __future__ import annotations

import os
import sys

from ray.cluster_utils import Cluster


def main() -> None:
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (its name) - others do not starve the agents
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        print(cluster.address, flush=True)
        for line in sys.stdin:
            if line.strip() == "add":
                cluster.add_node(num_cpus=1)
            else:
                node = next(node for node in cluster.worker_nodes if node.node_id == line.strip())
                cluster.remove_node(node, allow_graceful=False)
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
