"""Files of tasks on a disk that all machines share: nothing is transferred."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from trainyard.sweep.executor.code_version import CodeVersion
from trainyard.sweep.executor.meeting import forget_agent, left_agents
from trainyard.sweep.executor.shipping.courier import Arrivals
from trainyard.sweep.executor.shipping.portable import Folders
from trainyard.sweep.executor.task import Task
from trainyard.sweep.executor.worker import Place

Action = Callable[[], object]
_LOOK = 0.25  # seconds between two looks at the agents of an earlier head


class TaskFiles:
    """Handling of a task's files before it starts, while it runs, and after it.

    Args:
        directory: the sweep's directory.

    Attributes:
        folders: the folders of this machine that correspond to those of the head.
        arrivals: functions to call in the thread of the owner.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.folders = Folders()
        self.arrivals = Arrivals()

    def begin(self, key: Hashable, roots: list[str], then: Action) -> None:
        """Call a function when the files that a task needs are available.

        Args:
            key: the task.
            roots: its folders and files, relative to the sweep's directory.
            then: the function to call.
        """
        then()

    def ask(self, key: Hashable, then: Action) -> None:
        """Call a function when the files that the task has written so far are at their destination."""
        then()

    def end(self, key: Hashable, then: Action) -> None:
        """Call a function when all files that a task has written are available; the task has ended."""
        then()

    @property
    def busy(self) -> bool:
        """Whether there are pending transfers."""
        return False

    def close(self) -> None:
        """Stop transferring."""
        self.arrivals.close()


class HeadFiles(TaskFiles):
    """The same, at the head of the sweep."""

    shared = True
    """Whether all machines see the sweep's directory."""

    @cached_property
    def version(self) -> CodeVersion:
        """Version of the code that agents must run: the code on disk when it is first accessed."""
        return CodeVersion.now()

    def prepare(self) -> None:
        """Find the files that earlier heads have left."""

    def open(self, fence: int) -> None:
        """Start as the head with this number."""

    def put_away(self, whole: bool) -> None:
        """End, whether all tasks have ended or not."""

    def left_agents(self) -> dict[str, str]:
        """Return the agents of earlier heads that have not ended, each with its last heartbeat."""
        return left_agents(self.directory)

    def forget_agent(self, name: str) -> None:
        """Remove the heartbeat of an agent that is no longer alive."""
        forget_agent(self.directory, name)

    def lose(self, key: Hashable) -> None:
        """Record that the agent of a task is lost."""


class AgentFiles(TaskFiles):
    """The same, at an agent."""

    version: CodeVersion | None = None
    """Version of the agent's code, if it came from its head."""

    def place(self, task: Any) -> Place:
        """Return where a task runs on this machine."""
        return Place(task["cwd"], task["path"], task["argv"])

    def tick(self) -> None:
        """Show that the agent lives; called every second or so."""


def outlive(files: HeadFiles, before: Mapping[str, str], patience: float) -> None:
    """Wait for the agents of an earlier head to end, because their tasks must not be started twice.

    Args:
        files: the files of the head.
        before: their last heartbeats.
        patience: seconds without another heartbeat after which an agent is considered dead.
    """
    before = dict(before)
    seen = dict.fromkeys(before, time.monotonic())
    while before:
        time.sleep(_LOOK)
        now = files.left_agents()
        for name, count in dict(before).items():
            if name in now and now[name] != count:
                seen[name] = time.monotonic()
            silent = time.monotonic() - seen[name] > patience
            if name in now and silent:
                files.forget_agent(name)
        before = {name: now[name] for name in before if name in now}


def roots_of(task: Task, directory: Path) -> list[str]:
    """Return the folders and files of a task in the sweep's directory, relative to it."""
    named = (*task.folders, *([] if task.log is None else [task.log]))
    paths = dict.fromkeys(map(os.path.abspath, named))  # text: several times as quick as paths, and once for each task
    base = os.path.abspath(directory)  # noqa: PTH100
    roots = [path[len(base) + 1 :] or "." for path in paths if f"{path}/".startswith(f"{base}/")]
    return [one for one in roots if not any(one.startswith(f"{each}/") for each in roots)]
