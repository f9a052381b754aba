"""Agents on other machines, as their head knows them, and how they find and lose each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainyard.sweep.executor.base import Finished


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
class Spread:
    """Task on several agents, each of which has a part of it.

    Attributes:
        num: the task's own number.
        parts: the name of the agent of each part, and its worker's number, in the order of nodes.
        meeting: the file in which the first one says where it listens.
        left: those of them that have not ended.
        ended: how the others ended, in that order.
        over: it has lost an agent, and nothing more is reported for it.
    """

    num: int
    parts: list[tuple[str, int]]
    meeting: Path
    left: set[tuple[str, int]]
    ended: dict[tuple[str, int], Finished] = field(default_factory=dict)
    over: bool = False

    def outcome(self) -> Finished:
        """Return how the task ended, of which all parts have: as the first node says, or as the first part that failed.

        When a rank fails, the others lose their connections to it: what they say is a consequence.
        """
        wrong = [each for each in self.ended.values() if each.state != "done"]
        if not wrong:
            return self.ended[self.parts[0]]
        return min(wrong, key=lambda each: any(word in (each.error or "") for word in ("gloo", "Dist", "NCCL")))


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
        commons: the keys of what tasks have in common that it has.
        idle_since: when its last worker ended, by `time.monotonic`; None while it has one.
    """

    name: str
    place: str
    node: str
    slots: dict[int, int] = field(default_factory=dict)
    busy: dict[int, tuple[int, ...]] = field(default_factory=dict)
    tasks: dict[int, int] = field(default_factory=dict)
    commons: set[int] = field(default_factory=set)
    coming_home: set[int] = field(default_factory=set)
    afterwards: Callable[[], None] | None = None
    leaving: str = ""
    idle_since: float | None = None

    @property
    def in_use(self) -> set[int]:
        """Indices of the slots that its workers have."""
        return {index for indices in self.busy.values() for index in indices}

    def idle(self) -> float:
        """Return for how many seconds it has had no worker; -1 while it has one."""
        return -1.0 if self.idle_since is None else time.monotonic() - self.idle_since
