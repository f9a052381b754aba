"""Agents on other machines, as known to their head, and how they find and lose each other."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainyard.sweep.executor.base import Gained, Lost
from trainyard.sweep.executor.code_version import CodeVersion
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.task import Task


@dataclass(frozen=True)
class ClusterSettings:
    """How a head and its agents find and lose each other.

    Args:
        transport: over TCP, or as files in the sweep's directory.
        address: the address on which the head listens; None for the address of its host name.
        patience: seconds of silence after which an agent gives up its head; the head waits for this time plus `grace`.
        idle: seconds after which an agent without tasks ends.
        slots: the arguments of `find_slots` on each node.
        address_key: the setting of `address`, for messages.
    """

    transport: Literal["tcp", "files"] = "tcp"
    address: str | None = None
    patience: float = 60.0
    idle: float = 30.0
    slots: Mapping[str, Any] = field(default_factory=dict)
    address_key: str = "hydra.launcher.address"


@dataclass
class Remote:
    """Agent, as known to the head.

    Attributes:
        slots: the agent's own number of each of its slots, by index.
        busy: the slots of each of its workers.
        tasks: the task's own number of each of its workers.
        leaving: why it accepts no more tasks; empty while it does.
        coming_home: the workers that have ended and whose files are on their way.
        afterwards: called when they are available.
        commons: the keys of shared task data that it has.
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
        """Return the number of seconds for which it has had no worker; -1 while it has one."""
        return -1.0 if self.idle_since is None else time.monotonic() - self.idle_since


class RemoteSlots:
    """Slots of agents, by index, which are unique and not reused for other agents.

    Attributes:
        of: the agent of each slot.
    """

    def __init__(self) -> None:
        self.of: dict[int, Remote] = {}
        self._devices: dict[int, Slot] = {}
        self._indices = itertools.count()

    @property
    def ready(self) -> tuple[Slot, ...]:
        """Slots of agents that stay."""
        return tuple(self._devices[index] for index, agent in self.of.items() if not agent.leaving)

    def gain(self, agent: Remote, slots: Sequence[tuple[str, int]]) -> Gained:
        """Record the slots of an agent, each with its device and its threads."""
        gained = []
        for own, (device, threads) in enumerate(slots):
            index = next(self._indices)
            # Devices of one name are one device: those of machines differ.
            slot = Slot(index, f"{device}@{agent.name}", None, threads)
            agent.slots[index] = own
            self.of[index], self._devices[index] = agent, slot
            gained.append(slot)
        return Gained(tuple(gained))

    def lose(self, agent: Remote, indices: Sequence[int]) -> Lost | None:
        """Record that an agent no longer has some of its slots; None if they were already lost."""
        lost = tuple(self._devices.pop(index) for index in indices if agent.slots.pop(index, None) is not None)
        for slot in lost:
            del self.of[slot.index]
        return Lost(lost) if lost else None

    def clear(self) -> None:
        """Forget them all."""
        self.of.clear()
        self._devices.clear()


def refusal(hello: Mapping[str, Any], fence: int, version: CodeVersion) -> str:
    """Return why an agent that reports to the head is refused; empty if it is accepted.

    Args:
        hello: the agent's message.
        fence: the head's number.
        version: the version of the head's code.
    """
    if hello["fence"] != fence:
        return "the agent belongs to an earlier head"
    own = CodeVersion(**hello["version"])
    if not own.matches(version):
        return f"the agent runs {own.told}, but the head runs {version.told}. Both versions must be the same"
    return ""


def welcome_message(preload: Sequence[str], settings: ClusterSettings, grace: float) -> dict[str, Any]:
    """Return the settings of the head for an agent that is accepted."""
    return {"preload": preload, "settings": dict(settings.slots), "patience": settings.patience, "grace": grace}


def process_message() -> dict[str, Any]:
    """Return the settings of the head's process for an agent, whose tasks run as if the head had forked them."""
    return {"cwd": str(Path.cwd()), "path": [str(entry) for entry in sys.path], "argv": list(sys.argv)}


def task_message(
    task: Task, slots: Sequence[int], roots: Sequence[str], part: int, nodes: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the message about a task that is sent to an agent, in addition to its call and `process_message`.

    Args:
        task: the task.
        slots: its slots, by the agent's own numbers.
        roots: its folders and files, relative to the sweep's directory.
        part: the index of this part of a task on several agents; 0 for the first or only one.
        nodes: the message about the nodes of a task on several agents; None for a task on one agent.
    """
    log = task.log if task.log is None or not part else task.log.with_stem(f"{task.log.stem}.node{part}")
    return {
        "slots": slots,
        "threads": task.threads,
        "log": None if log is None else str(log.absolute()),
        "roots": roots,
        "common": None if task.common is None else task.common.key,
        "nodes": nodes,
    }
