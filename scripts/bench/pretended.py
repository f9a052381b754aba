"""Simulated nodes: agents that use the protocol of `trainyard.sweep.executor.remote_agent` and train nothing.

    python scripts/bench/pretended.py DIRECTORY --agents 4 --slots 250 --seconds 1 --epochs 5

One process simulates all nodes, so a sweep can have any number of nodes and slots. A job ends after about the given
number of seconds. If the sweep is tracked, each job writes the files of a run: `run.json`, and a journal with four
values for each epoch.
"""

from __future__ import annotations

import argparse
import heapq
import io
import itertools
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from multiprocessing import connection
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from trainyard.sweep.executor.code_version import CodeVersion
from trainyard.sweep.executor.meeting import open_agent
from trainyard.sweep.executor.pool import Pool
from trainyard.sweep.executor.transport import TransportError
from trainyard.sweep.executor.transport.base import HEAD
from trainyard.sweep.executor.worker import TaskReport, _write_report
from trainyard.sweep.worker_tasks import JobDone
from trainyard.track import Journal, RunInfo
from trainyard.track.run_info import FILE


class PretendedPool(Pool):
    """Starts the process of the nodes, once.

    Args:
        arguments: of its command line, behind the directory.
    """

    def __init__(self, directory: Path, arguments: Sequence[str]) -> None:
        self._command = [sys.executable, __file__, str(directory), *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str]) -> bool:
        return True

    def want(self, count: int) -> None:
        if self._process is None:
            self._process = subprocess.Popen(self._command)

    def gone(self) -> dict[str, str]:
        return {}

    def arrived(self, place: str) -> None:
        pass

    def close(self) -> None:
        if self._process is not None:
            self._process.wait()


class Nodes:
    """The nodes of a sweep.

    Args:
        directory: the sweep's.
        agents: the number of nodes.
        slots: of each.
        seconds: that a job takes, on average.
        epochs: that its journal has.
    """

    def __init__(self, directory: Path, agents: int, slots: int, seconds: float, epochs: int) -> None:
        self._directory = directory
        self._slots = slots
        self._seconds = seconds
        self._epochs = epochs
        self._links = {}
        self._ends: list[tuple[float, int, str, int, Path]] = []
        self._order = itertools.count()
        self._random = random.Random(0)
        self._sweep = RunInfo.read(directory) if (directory / FILE).exists() else None
        for number in range(agents):
            name = f"pretended-{number}"
            self._links[name], address = open_agent(directory, name)
            version = asdict(CodeVersion.now())
            hello = {"name": name, "place": name, "node": name, "fence": address.fence, "version": version}
            self._links[name].send(HEAD, ["hello", hello])

    def run(self) -> None:
        """Serve the head until it has closed all links."""
        while self._links:
            due = self._ends[0][0] - time.monotonic() if self._ends else 1.0
            connection.wait([link.fileno() for link in self._links.values()], max(0.0, min(1.0, due)))
            for name, link in list(self._links.items()):
                try:
                    for received in link.receive(0):
                        self._obey(name, received.message)
                except TransportError:
                    self._links.pop(name).close()
            while self._ends and self._ends[0][0] <= time.monotonic():
                _, _, name, worker, folder = heapq.heappop(self._ends)
                self._end(name, worker, folder)

    def _obey(self, name: str, message: list[Any]) -> None:
        match message:
            case ["welcome", _]:
                self._links[name].send(HEAD, ["ready", [["cpu", 1]] * self._slots])
            case ["task", worker, given]:
                self._begin(name, worker, given)
            case ["close"]:
                self._links.pop(name).close()

    def _begin(self, name: str, worker: int, given: Mapping[str, Any]) -> None:
        self._links[name].send(HEAD, ["forked", worker, 1])
        folder = Path(given["log"]).parent
        if self._sweep is not None:
            params = {"model": "mlp", "data": "digits", "optim": "adam", "seed": folder.name}
            own = {"parent": self._sweep.id, "experiment": self._sweep.experiment, "uri": self._sweep.uri}
            RunInfo(f"seed={folder.name}", params, mark=self._sweep.mark, **own).write(folder)  # type: ignore[arg-type]
        until = time.monotonic() + self._seconds * self._random.uniform(0.8, 1.2)
        heapq.heappush(self._ends, (until, next(self._order), name, worker, folder))

    def _end(self, name: str, worker: int, folder: Path) -> None:
        loss = self._random.random()
        if self._sweep is not None:
            with Journal(folder) as journal:
                journal.status("RUNNING")
                for epoch in range(1, self._epochs + 1):
                    values = {"train/loss": loss, "train/lr": 0.1, "val/loss": loss, "val/acc": 1 - loss}
                    journal.metrics(epoch, values, epoch)
                journal.status("FINISHED")
        report = io.BytesIO()
        _write_report(report, TaskReport("done", cloudpickle.dumps(JobDone(loss, str(folder), "train"))))
        if name in self._links:
            self._links[name].send(HEAD, ["ended", worker, 0, 0, False], report.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="directory of the sweep")
    parser.add_argument("--agents", type=int, default=4, help="number of nodes (default: 4)")
    parser.add_argument("--slots", type=int, default=250, help="slots of each node (default: 250)")
    parser.add_argument("--seconds", type=float, default=1.0, help="mean duration of a job (default: 1)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs in the journal of a job (default: 5)")
    options = parser.parse_args()
    Nodes(options.directory, options.agents, options.slots, options.seconds, options.epochs).run()


if __name__ == "__main__":
    main()
