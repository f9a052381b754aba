"""Task of an executor (a job, a stack or a probe, run in a separate process), and its outcome."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainyard.sweep.executor.shipping import portable
from trainyard.sweep.executor.shipping.portable import Folders

TaskState = Literal["done", "failed", "interrupted", "timeout", "lost", "paused"]
EventKind = Literal["started", "retried", "ended", "failed", "interrupted"]


class Common:
    """Value that many tasks share: it is pickled once, and sent to each machine once.

    Attributes:
        key: its number, which is unique in a process.
    """

    _keys = itertools.count()

    def __init__(self, value: Any) -> None:
        self.key = next(self._keys)
        self._value = value
        self._pickled: tuple[Folders, bytes] | None = None

    def pickled(self, folders: Folders = Folders()) -> bytes:  # noqa: B008 - it is frozen
        """Return the value, pickled on a machine with these folders.

        Raises:
            Exception: it cannot be pickled; the error of pickle.
        """
        if self._pickled is None or self._pickled[0] != folders:
            self._pickled = folders, portable.dumps(self._value, folders)
        return self._pickled[1]


@dataclass(frozen=True)
class Task:
    """Call `function(argument)`, or `function(argument, common)`, once in a separate process.

    Attributes:
        num: its number.
        function: the function. It and its argument are sent by cloudpickle, so lambdas and functions of a script work.
        argument: its argument.
        expected_seconds: its duration, if known: longer tasks are started first.
        log: the file to which the task's output is appended; None discards the output.
        name: its name in messages; if empty, its number is used.
        attempts: earlier attempts in another form.
        slots: the number of slots that it needs; on CUDA, each on a separate device.
        threads: the number of its threads; None for that of its slot.
        folders: the folders that it reads and writes.
        common: the function's second argument; None if it has none.
        importable: whether all classes and functions of the call can be imported, so that pickle is sufficient.
    """

    num: int
    function: Callable[..., Any]
    argument: Any = None
    expected_seconds: float | None = None
    log: Path | None = None
    name: str = ""
    attempts: int = 0
    slots: int = 1
    threads: int | None = None
    folders: tuple[str | Path, ...] = ()
    common: Common | None = None
    importable: bool = False

    def call(self, folders: Folders = Folders()) -> bytes:  # noqa: B008 - it is frozen
        """Return the call for `write_task`.

        Args:
            folders: folders of this machine that have another place on the executing machine.

        Raises:
            Exception: the function or its argument cannot be pickled; the error of pickle.
        """
        return portable.dumps((self.function, self.argument), folders, importable=self.importable)


@dataclass(frozen=True)
class TaskOutcome:
    """Outcome of a task.

    Attributes:
        num: the task's number.
        state: how its last attempt ended:

            - `done`: the function returned, or raised `SystemExit` with status 0;
            - `failed`: it raised;
            - `interrupted`: it was asked to stop, by a signal to this process or to the task's, or by `fail_fast`;
              or it had not started when that happened;
            - `timeout`: it was stopped because it took too long;
            - `lost`: its process ended without a report: killed, crashed, `os._exit`;
            - `paused`: it ended at a checkpoint from which it will continue later (`trainyard.errors.JobPaused`).
        value: the function's result; None unless the state is `done`.
        error: the reason, on one line; None when done.
        traceback: the exception's traceback; None if there was no exception, or if its message is sufficient.
        seconds: the duration of the last attempt.
        attempts: started attempts, including those before this run; 0 for a task that never started. An attempt that
            ran out of CUDA memory next to others is not counted.
        slot: the index of the last attempt's slot, or the first of several; -1 for a task that never started.
        moved: whether it was asked to end because its slots are taken away, so that it continues elsewhere.
    """

    num: int
    state: TaskState
    value: Any = None
    error: str | None = None
    traceback: str | None = None
    seconds: float = 0.0
    attempts: int = 0
    slot: int = -1
    moved: bool = False


@dataclass(frozen=True)
class TaskEvent:
    """Event in the execution of a task.

    Attributes:
        kind: `started`; `retried` (an attempt failed and there will be another); and last of all, once for each
            task, with its outcome: `ended` (done), `failed` (failed, timeout or lost) or `interrupted` (or paused).
        num: the task's number.
        slot: the slot's index, or the first of several; -1 for a task that never started.
        attempt: the attempt's number, from 1; 0 for a task that never started.
        time: seconds since the epoch.
        pid: the process of the task; None for a task that never started.
        error: the error, on one line.
        traceback: the exception's traceback.
        outcome: the task's outcome, with its last event.
    """

    kind: EventKind
    num: int
    slot: int
    attempt: int
    time: float
    pid: int | None = None
    error: str | None = None
    traceback: str | None = None
    outcome: TaskOutcome | None = None
