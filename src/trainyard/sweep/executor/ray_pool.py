"""Pool of agents on a Ray cluster: actors, each of which starts one agent."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from trainyard.application import StartedAs, continuation
from trainyard.errors import ConfigError, TrainyardError, counted
from trainyard.sweep.executor.pool import Pool
from trainyard.sweep.executor.ray_process import CODE
from trainyard.sweep.executor.remote_agent import PLACE
from trainyard.sweep.executor.shipping.home import HomeFiles
from trainyard.sweep.executor.shipping.node import CODE as NODE

FOLDER = "ray"
FAILURES = 3
"""Number of consecutive agents that may end before they reach the head."""
_SLOW = 10.0  # seconds after which agents that wait for a node are reported
_IMPORT, _START = 120.0, 90.0  # seconds to import Ray, and to start a cluster here
REACH = 60.0
"""Seconds to reach a cluster that answers: Ray's client starts a process there. Where nothing does, 10 are waited."""
_END = 20.0  # seconds that the process may take for its end
ADDRESSES = "the address of a running cluster (auto, HOST:PORT or ray://HOST:PORT), or local to start one here"


@dataclass(frozen=True)
class Request:
    """Request of an agent to a Ray cluster: the options of its actors.

    Args:
        num_cpus, num_gpus: CPUs and GPUs of an agent.
        resources: amounts of custom resources of the cluster, by name.
    """

    num_cpus: int = 1
    num_gpus: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def amounts(self) -> dict[str, float]:
        """The amount of each resource, by Ray's names."""
        return {name: amount for name, amount in {"CPU": self.num_cpus, "GPU": self.num_gpus}.items() if amount} | {
            **self.resources
        }

    def fits(self, node: Mapping[str, float]) -> bool:
        """Return whether a node could ever satisfy the request."""
        return all(node.get(name, 0) >= amount for name, amount in self.amounts.items())


class RayPool(Pool):
    """Keeps the wanted number of actors. A separate process communicates with Ray.

    Args:
        directory: the sweep's directory; the output of agents is in its folder `ray/`.
        address: the address of the cluster.
        request: the request of each agent.
        most: the maximum number of agents at a time.
        autoscaling: whether the cluster adds nodes.
        patience: the seconds within which agents without a head end.
        files: sends the code to nodes that do not see it; None if they do.
        tell: called with messages about agents.
    """

    def __init__(
        self,
        directory: Path,
        address: str,
        request: Request,
        most: int,
        autoscaling: bool = False,
        patience: float = 90.0,
        files: HomeFiles | None = None,
        tell: Callable[[str], object] = lambda line: None,
    ) -> None:
        self._folder = directory / FOLDER
        self._address = address
        self._request = request
        self._most = most
        self._autoscaling = autoscaling
        self._patience = patience
        self._files = files
        self._told: str | None = None
        self._tell = tell
        self._command: Sequence[str] = ()
        self._placed = 0
        self._on_nodes: set[str] = set()
        self._waits_since: float | None = None
        self._told_waiting = False
        self._places: set[str] = set()
        self._arrived: set[str] = set()
        self._taken_back: set[str] = set()
        self._failures = 0
        self._process: subprocess.Popen[str] | None = None
        self._messages: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        self._errors: IO[str]
        self._code: tempfile.TemporaryDirectory[str]

    def check(self) -> None:
        nodes = self._connect()
        if not self._autoscaling and not any(self._request.fits(node) for node in nodes):
            self.close()
            more = " If the cluster adds nodes on demand, set hydra.launcher.autoscaling=true."
            raise TrainyardError(
                f"No node of the Ray cluster has {_in_words(self._request.amounts)}, the request of an agent "
                "(num_cpus, num_gpus and resources of hydra.launcher). "
                f"Available: {_nodes_in_words(nodes)}.{'' if self._address == 'local' else more}"
            )

    def _connect(self) -> list[dict[str, float]]:
        """Start the process that talks to Ray, and return the resources of each node."""
        options = {
            "num_cpus": self._request.num_cpus,
            "num_gpus": self._request.num_gpus,
            "resources": dict(self._request.resources),
        }
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the pool)
        self._messages = queue.SimpleQueue()
        self._code = tempfile.TemporaryDirectory(prefix="trainyard-")
        archive = ""
        if self._files is not None:
            archive = f"{self._code.name}/code.zip"
            self._files.pack(Path(archive))
        reach = _START if self._address == "local" else REACH
        given = [self._address, json.dumps(options), str(self._patience), str(reach), archive, *map(str, sys.path)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", CODE, *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for the head
        )
        threading.Thread(target=self._read, args=(self._process.stdout,), name="trainyard ray", daemon=True).start()
        self._await_import()
        until, tried = time.monotonic() + reach, ""
        while True:
            silent = f"The Ray cluster did not respond within {reach:.0f} seconds{tried}"
            match self._answer(until - time.monotonic(), silent):
                case ["connected", nodes]:
                    return list(nodes)
                case ["failed", why]:
                    self._refuse(why)
                case ["retrying", why]:
                    tried = f". The last attempt failed: {why}"

    def _await_import(self) -> None:
        try:
            message = self._messages.get(timeout=_IMPORT)
        except queue.Empty:
            self._kill()
            raise TrainyardError(f"Ray could not be imported within {_IMPORT:.0f} seconds.") from None
        if message is None:
            self._kill()
            raise TrainyardError(f"Ray could not be imported: {self._last_words().rstrip('.')}.")

    def _answer(self, timeout: float, failure: str) -> list[Any]:
        try:
            message = self._messages.get(timeout=max(0.0, timeout))
        except queue.Empty:
            self._refuse(failure)
        if message is None:
            self._refuse(self._last_words())
        return message

    def _refuse(self, why: str) -> NoReturn:
        self._kill()
        why = f"{why.rstrip('.')}."
        if self._address == "local":
            raise TrainyardError(f"Ray could not start a cluster here (hydra.launcher.address=local): {why}")
        raise ConfigError("hydra.launcher.address", self._address, ADDRESSES, hint=why) from None

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._messages.put(json.loads(line))
        self._messages.put(None)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return lines[-1] if lines else "Trainyard's process for Ray ended without a message"

    def start(self, command: Sequence[str]) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._command = command
        if self._files is not None:
            self._command = [sys.executable, "-c", NODE, *self._files.path()]
            self._told = self._files.told_to_nodes()
        return False  # they show by themselves whether they live

    def want(self, count: int) -> None:
        missing = min(count, self._most) - len(self._places)
        for _ in range(missing):
            place = str(self._placed)
            self._placed += 1
            self._places.add(place)
            given = {
                "command": list(self._command),
                "cwd": str(Path.cwd()),
                "log": str(self._folder / f"{place}.out"),
                "environ": {**os.environ, PLACE: place},
                "told": self._told,
            }
            self._send("place", place, given)
        self._tell_of_waiting()
        waiting = sorted(self._places - self._arrived - self._taken_back, key=int)
        for place in waiting[len(waiting) + missing :] if missing < 0 else ():
            self._taken_back.add(place)
            self._send("take", place)

    def _tell_of_waiting(self) -> None:
        """Report once that agents have been waiting for a while for a node that is free or will be added."""
        waiting = len(self._places - self._on_nodes - self._taken_back)
        if not waiting or self._told_waiting:
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = time.monotonic()
        elif time.monotonic() - self._waits_since > _SLOW:
            self._told_waiting = True
            what = _in_words(self._request.amounts)
            agents = f"{waiting} of {counted(len(self._places), 'agent')} {'waits' if waiting == 1 else 'wait'}"
            self._tell(f"{agents} for a free or additional node with {what}.")

    def _send(self, *message: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `gone` tells
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def gone(self) -> dict[str, str]:
        found = {}
        for place, why, said in self._ended():
            found[place] = why
            self._places.discard(place)
            self._left(place, why, said)
        return found

    def _ended(self) -> Iterator[tuple[str, str, str]]:
        while not self._messages.empty():
            match self._messages.get():
                case ["ended", place, why, said]:
                    if self._told is not None and said:
                        (self._folder / f"{place}.out").write_text(said)
                    yield place, why, said
                case ["placed", place]:
                    self._on_nodes.add(place)
                case None:
                    why = self._last_words().rstrip(".")
                    how = continuation(self._folder.parent, recorded=StartedAs.now() is not None)
                    raise TrainyardError(
                        f"The connection to the Ray cluster was lost: {why}. To continue the sweep, {how}."
                    )

    def _left(self, place: str, why: str, said: str) -> None:
        if place in self._arrived or place in self._taken_back:
            return
        self._failures += 1
        if self._failures >= FAILURES:
            lines = said.strip().splitlines()
            told = f"{why}."
            if lines:
                output = self._folder / f"{place}.out"
                told = f"{why}, and printed: {lines[-1].strip().rstrip('.')}. Its output is in {output}."
            raise TrainyardError(
                f"{self._failures} agents ended before they connected to the head. The last one: {told}"
            )

    def arrived(self, place: str) -> None:
        self._arrived.add(place)
        self._failures = 0

    def close(self) -> None:
        if self._process is None:
            return
        self._send("close")
        until = time.monotonic() + _END
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, until - time.monotonic()))
        with suppress(TrainyardError):  # its end is no loss now
            for _ in self._ended():
                pass
        self._kill()

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process = None
        self._code.cleanup()
        self._places.clear()


def _in_words(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{name}: {amount:g}" for name, amount in amounts.items())


def _nodes_in_words(nodes: Sequence[Mapping[str, float]]) -> str:
    """Return the resources of nodes that an agent may ask for, each kind of nodes once."""
    kinds = Counter(
        _in_words({name: amount for name, amount in sorted(node.items()) if not _is_ray_own(name)}) or "no resources"
        for node in nodes
    )
    return "; ".join(f"{count} x ({kind})" for kind, count in kinds.items()) or "no nodes"


def _is_ray_own(name: str) -> bool:
    return name in ("memory", "object_store_memory") or name.startswith(("node:", "accelerator_type:"))
