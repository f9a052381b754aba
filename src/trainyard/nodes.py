"""Nodes of a job that is spread over several machines, and where they meet.

An agent passes the list of all nodes to the worker of each node, in the variable `TRAINYARD_NODES` of its environment.
The first one leaves in a file, which all see, where it listens and what is to be done. The file is in the folder of the
agents (mode 700), like the token that they know their head by.
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
    """Nodes of a job, as one of them knows them.

    Attributes:
        index: the number of this one, from 0.
        devices: the number of devices that the job has on each.
        meeting: the file in which the first one says where it listens.
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
        """Number of devices on the nodes before this one: the rank of its first."""
        return sum(self.devices[: self.index])

    @property
    def total(self) -> int:
        """Number of devices on all nodes."""
        return sum(self.devices)

    def announce(self, port: int, work: Any) -> None:
        """Tell the other nodes where this one listens, and what is to be done."""
        self.meeting.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        writing = self.meeting.with_name(f".{self.meeting.name}.{os.getpid()}")
        fd = os.open(writing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            pickle.dump((own_address(), port, work), file)
        writing.rename(self.meeting)

    def wait(self, timeout: float) -> tuple[str, int, Any]:
        """Wait for the first node, and return its address, its port, and what is to be done.

        Raises:
            TrainyardError: it has not said so within `timeout` seconds.
        """
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            with suppress(FileNotFoundError):
                address, port, work = pickle.loads(self.meeting.read_bytes())
                return address, port, work
            time.sleep(_LOOK)
        raise TrainyardError(
            f"The first of {len(self.devices)} nodes did not start within {timeout:g} s: {self.meeting} does not exist."
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
