"""Nodes of a job that runs on several machines, and how they connect.

An agent passes the list of all nodes to the worker of each node, in the variable `TRAINYARD_NODES` of its environment.
The first node writes its address and the work into a file that all nodes can read. The file is in the folder of the
agents (mode 700), like the token with which they authenticate their head.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard.errors import TrainyardError

VARIABLE = "TRAINYARD_NODES"
_LOOK = 0.05  # seconds between two looks for the file


@dataclass(frozen=True)
class Nodes:
    """Nodes of a job, as known to one of them.

    Attributes:
        index: the number of this node, from 0.
        devices: the number of devices of the job on each node.
        meeting: the file with the address of the first node.
    """

    index: int
    devices: tuple[int, ...]
    meeting: Path

    @classmethod
    def find(cls, environ: Mapping[str, str] | None = None) -> Nodes | None:
        """Return the nodes of this process's job; None if it is on one machine."""
        text = (os.environ if environ is None else environ).get(VARIABLE)
        if not text:
            return None
        found = json.loads(text)
        return cls(found["index"], tuple(found["devices"]), Path(found["meeting"]))

    @property
    def own(self) -> int:
        """Number of devices on this node."""
        return self.devices[self.index]

    @property
    def first(self) -> int:
        """Number of devices on the previous nodes, which is the rank of the first device of this node."""
        return sum(self.devices[: self.index])

    @property
    def total(self) -> int:
        """Number of devices on all nodes."""
        return sum(self.devices)

    def announce(self, port: int, work: Any) -> None:
        """Publish the address of this node, and the work, to the other nodes."""
        self.meeting.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        writing = self.meeting.with_name(f".{self.meeting.name}.{os.getpid()}")
        fd = os.open(writing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            pickle.dump((own_address(), port, work), file)
        writing.rename(self.meeting)

    def wait(self, timeout: float) -> tuple[str, int, Any]:
        """Wait for the first node, and return its address, its port, and the work.

        Raises:
            TrainyardError: it has not published them within `timeout` seconds.
        """
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            with suppress(FileNotFoundError):
                address, port, work = pickle.loads(self.meeting.read_bytes())
                return address, port, work
            time.sleep(_LOOK)
        raise TrainyardError(
            f"The first of {len(self.devices)} nodes did not start within {timeout:g} s: {self.meeting} does not exist."
            " Check the log of that node, and that all nodes share the folder of this file."
        )


def own_address() -> str:
    """Return the address at which other machines probably reach this one."""
    with suppress(OSError):
        found = socket.gethostbyname(socket.gethostname())
        if not found.startswith("127."):
            return found
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("10.255.255.255", 1))  # sends nothing: it asks for the route
        return str(probe.getsockname()[0])
    return "127.0.0.1"
