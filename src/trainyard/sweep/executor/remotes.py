"""Agents on other machines, as their head knows them, and how they find and lose each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ClusterSettings:
    """How a head and its agents find and lose each other.

    Args:
        transport: over TCP, or as files in the sweep's directory.
        address: the address that the head listens at; None for that of its machine's name.
        patience: seconds of silence after which an agent gives its head up; the head waits so long and `grace` more.
        idle: seconds after which an agent ends for which there is no task.
        slots: the arguments of `find_slots` on each node.
    """

    transport: Literal["tcp", "files"] = "tcp"
    address: str | None = None
    patience: float = 60.0
    idle: float = 30.0
    slots: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Remote:
    """Agent, as the head knows it.

    Attributes:
        slots: the agent's own number of each of its slots, by index.
        busy: the slots of each of its workers.
        tasks: the task's own number of each of its workers.
        leaving: why it takes no more tasks; empty while it does.
        coming_home: the workers that have ended and whose files are on their way.
        afterwards: what is done once they are there.
        idle_since: when its last worker ended, by `time.monotonic`; None while it has one.
    """

    name: str
    place: str
    node: str
    slots: dict[int, int] = field(default_factory=dict)
    busy: dict[int, tuple[int, ...]] = field(default_factory=dict)
    tasks: dict[int, int] = field(default_factory=dict)
    coming_home: set[int] = field(default_factory=set)
    afterwards: Callable[[], None] | None = None
    leaving: str = ""
    idle_since: float | None = None

    def idle(self) -> float:
        """Return for how many seconds it has had no worker; -1 while it has one."""
        return -1.0 if self.idle_since is None else time.monotonic() - self.idle_since
