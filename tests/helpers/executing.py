"""Tasks run to their end on an executor of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainyard.sweep.executor import LocalExecutor, Policy
from trainyard.sweep.executor.task import Task, TaskOutcome
from trainyard.sweep.run_tasks import Callbacks, run_tasks

POLICY = ("retries", "timeout", "fail_fast", "grace")
CALLBACKS = ("on_event", "on_tick", "ends")


def execute(slots: Any, tasks: Sequence[Task], **options: Any) -> list[TaskOutcome]:
    """Run tasks.

    Args:
        slots: the slots, or an executor.
        tasks: the tasks.
        **options: those of the policy, the callbacks and a new executor.
    """
    policy = Policy(**{name: options.pop(name) for name in POLICY if name in options})
    callbacks = Callbacks(**{name: options.pop(name) for name in CALLBACKS if name in options})
    executor = slots if isinstance(slots, LocalExecutor) else LocalExecutor(slots, **options)
    return run_tasks(executor, tasks, policy, callbacks).outcomes
