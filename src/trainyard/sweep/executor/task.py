"""A task: what an executor runs in a process of its own, a job, a stack or a measurement; and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TaskState = Literal["done", "failed", "interrupted", "timeout", "lost"]
EventKind = Literal["started", "retried", "ended", "failed", "interrupted"]


@dataclass(frozen=True)
class Task:
    """`function(argument)`, to be called once in a process of its own.

    Attributes:
        num: its number; no two tasks that run together share one.
        function: what to call. It and its argument travel by cloudpickle, so lambdas and functions of a script will do.
        argument: its argument.
        expected_seconds: how long it takes, where that is known: longer tasks are started first.
        log: the file to which all that the task prints is appended; None discards it.
        name: what it is called in messages; its number where that is empty.
        attempts: attempts that were made already, in another way.
        slots: how many slots it takes at once; of CUDA devices, so many devices.
    """

    num: int
    function: Callable[[Any], Any]
    argument: Any = None
    expected_seconds: float | None = None
    log: Path | None = None
    name: str = ""
    attempts: int = 0
    slots: int = 1


@dataclass(frozen=True)
class TaskOutcome:
    """What became of a task.

    Attributes:
        num: the task's number.
        state: how its last attempt ended:

            - `done`: the function returned, or raised `SystemExit` with status 0;
            - `failed`: it raised;
            - `interrupted`: it was asked to stop, by a signal to this process or to the task's own, or by `fail_fast`;
              or it had not begun when that happened;
            - `timeout`: it was stopped for it took too long;
            - `lost`: its process ended without a word: killed, crashed, `os._exit`.
        value: what the function returned; None unless the state is `done`.
        error: why, on one line; None when done.
        traceback: the exception's traceback; None where there was no exception, or its message explains all.
        seconds: how long the last attempt took.
        attempts: attempts begun, those before this run among them; 0 for a task that never began. One that ran out of
            CUDA memory beside others is not counted.
        slot: the index of the last attempt's slot, or the first of several; -1 for a task that never began.
    """

    num: int
    state: TaskState
    value: Any = None
    error: str | None = None
    traceback: str | None = None
    seconds: float = 0.0
    attempts: int = 0
    slot: int = -1


@dataclass(frozen=True)
class TaskEvent:
    """What just happened to a task.

    Attributes:
        kind: `started`; `retried` (an attempt went wrong and there will be another); and last of all, once for each
            task, with its outcome: `ended` (done), `failed` (failed, timeout or lost) or `interrupted`.
        num: the task's number.
        slot: the slot's index, or the first of several; -1 for a task that never began.
        attempt: the attempt's number, from 1; 0 for a task that never began.
        time: seconds since the epoch.
        pid: the task's process; None for a task that never began.
        error: what went wrong, on one line.
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
