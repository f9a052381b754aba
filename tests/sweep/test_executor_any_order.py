"""Whatever tasks do, each has one outcome, and the one that its behaviour asks for."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
from executing import execute
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.task import Task

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file

ENDS = {"return": "done", "raise": "failed", "kill": "lost", "exit": "lost", "memory": "failed"}
behaviours = st.lists(st.sampled_from(sorted(ENDS)), min_size=1, max_size=4)  # attempt by attempt; the last one stays


class OutOfMemoryError(RuntimeError):
    """What torch calls its own."""


def act(argument: Any) -> Any:
    """Behaves as this attempt is to behave, and notes when it began and ended."""
    folder, num, behaviour = argument
    attempt = len(list(folder.glob(f"{num}.*.begin")))
    (folder / f"{num}.{attempt}.begin").write_text(str(time.monotonic()))
    time.sleep(0.002 * (num % 3))
    (folder / f"{num}.{attempt}.end").write_text(str(time.monotonic()))
    match behaviour[min(attempt, len(behaviour) - 1)]:
        case "raise":
            raise ValueError("on purpose")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(5)
        case "memory":
            raise OutOfMemoryError("CUDA out of memory")
    return num


def expectation(behaviour: Any, retries: Any, cuda: Any) -> Any:
    """The state in which a task ends, and its attempts."""
    attempts = begun = 0
    spared = not cuda
    while True:
        end = behaviour[min(begun, len(behaviour) - 1)]
        begun += 1
        if end == "memory" and not spared:
            spared = True
            continue
        attempts += 1
        if end == "return" or attempts > retries:
            return ENDS[end], attempts, begun


@settings(max_examples=25)
@given(
    tasks=st.lists(st.tuples(behaviours, st.none() | st.floats(0, 10)), max_size=8),
    devices=st.lists(st.sampled_from(["cpu", "cuda:0", "cuda:1"]), min_size=1, max_size=4),
    retries=st.integers(0, 2),
)
def test_every_task_ends_once_and_as_expected(tasks: Any, devices: Any, retries: int) -> None:
    cuda = all(device != "cpu" for device in devices)
    if not cuda:  # a machine has the one or the other
        devices = ["cpu"] * len(devices)
    events: list[Any] = []
    slots = [Slot(index, device) for index, device in enumerate(devices)]
    before = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcomes = execute(
            slots,
            [Task(num, act, (folder, num, behaviour), seconds) for num, (behaviour, seconds) in enumerate(tasks)],
            retries=retries,
            preload=(),
            on_event=events.append,
        )
        times = {path.name: float(path.read_text()) for path in folder.iterdir()}
    if before is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = before

    assert [outcome.num for outcome in outcomes] == list(range(len(tasks)))
    assert Counter(event.num for event in events if event.outcome) == Counter(range(len(tasks)))
    for outcome, (behaviour, _) in zip(outcomes, tasks, strict=True):
        state, attempts, begun = expectation(behaviour, retries, cuda)
        assert (outcome.state, outcome.attempts) == (state, attempts)
        assert outcome.value == (outcome.num if state == "done" else None)
        kinds = [event.kind for event in events if event.num == outcome.num]
        assert kinds == ["started", "retried"] * (begun - 1) + ["started", "ended" if state == "done" else "failed"]

    # On no slot do two tasks run at a time, by the events and by the tasks' own clocks. Nor is anything beside a task
    # that has run out of its device's memory.
    at_work: dict[Any, Any] = {}
    alone: set[Any] = set()
    spans: dict[int, list[tuple[float, float]]] = {slot.index: [] for slot in slots}
    counts: Counter[int] = Counter()
    for event in events:
        if event.kind == "started":
            assert event.slot not in at_work
            beside = {num for slot, num in at_work.items() if devices[slot] == devices[event.slot]}
            assert not beside & alone
            assert not (beside and event.num in alone)
            at_work[event.slot] = event.num
            key = f"{event.num}.{counts[event.num]}"
            counts[event.num] += 1
            spans[event.slot].append((times[f"{key}.begin"], times[f"{key}.end"]))
        else:
            assert at_work.pop(event.slot) == event.num
            if cuda and event.error == "OutOfMemoryError: CUDA out of memory":
                alone.add(event.num)
    assert not at_work
    for span in spans.values():
        assert all(first[1] <= second[0] for first, second in pairwise(span))
