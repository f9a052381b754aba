"""Cost of the scheduler: its events, the replay of a manifest, and the utilization of slots.

    .venv/bin/python scripts/bench/scheduler.py [--jobs 100000] [--slots 1000] [--sleeping 500]

The script writes the manifest of a generated sweep and measures the scheduler alone, replays the manifest, and runs
sleeping jobs on 8 slots.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from trainyard.sweep.event_records import to_record
from trainyard.sweep.events import Action, Began, Ended, Event, Proposed, Queued, SlotsGained, Start, Started, Unit
from trainyard.sweep.executor import LocalExecutor
from trainyard.sweep.executor.slots import Slot
from trainyard.sweep.executor.task import Task, TaskEvent
from trainyard.sweep.manifest import FILE, FORMAT, Manifest
from trainyard.sweep.run_tasks import Callbacks, run_tasks
from trainyard.sweep.scheduler import Scheduler

SLEEP = 0.5  # seconds of a sleeping job


def events(jobs: int, slots: int, scheduler: Scheduler) -> Iterator[tuple[Event, float]]:
    """Yield the events of a sweep of jobs that run, one in ten of which fails once, with the processor time of each."""
    tried: set[int] = set()
    running: list[int] = []

    def told(event: Event) -> tuple[Event, float]:
        begin = time.thread_time()
        actions: list[Action] = scheduler.handle(event)
        seconds = time.thread_time() - begin
        running.extend(action.unit.nums[0] for action in actions if isinstance(action, Start))
        return event, seconds

    yield told(Began())
    for num in range(jobs):
        yield told(Proposed(num, ("optim.lr=0.001", f"seed={num}")))
    yield told(SlotsGained(tuple((index, "cpu") for index in range(slots))))
    yield told(Queued(tuple(Unit((num,)) for num in range(jobs))))
    while running:
        num = running.pop(0)
        yield told(Started(num))
        if num % 10 == 0 and num not in tried:
            tried.add(num)
            yield told(Queued((Unit((num,), attempts=1),), "again"))
        else:
            yield told(Ended(num, "done", 1.5, 0.9))


def write(directory: Path, jobs: int, slots: int) -> list[float]:
    """Write the manifest of a generated sweep, and return the seconds that the scheduler took for each event."""
    seconds = []
    with (directory / FILE).open("w") as file:
        print(json.dumps({"kind": "manifest", "format": FORMAT}), file=file)
        for event, took in events(jobs, slots, Scheduler()):
            seconds.append(took)
            record = {**to_record(event), "time": time.time()}
            print(json.dumps(record | ({"subdir": str(event.num)} if isinstance(event, Proposed) else {})), file=file)
            if isinstance(event, Queued) and not event.why:
                alike = {"device": "cpu", "threads": 1, "slots": 1, "cpu": "", "note": ""}
                tasks = [{"nums": [num], **alike} for num in range(jobs)]
                print(json.dumps({"kind": "decisions", "tasks": tasks}), file=file)
    return seconds


def sleep(argument: object) -> None:
    time.sleep(SLEEP)


def idle(count: int, slots: int) -> tuple[float, float]:
    """Return the share of the slots' time in which nothing slept, while a job waited, and the head's seconds for a job.

    A job waits until the last one starts: after that there are slots for which there is none.
    """
    spans: list[tuple[float, float]] = []

    def note(event: TaskEvent) -> None:
        if event.outcome is not None:
            end = time.monotonic()
            spans.append((end - event.outcome.seconds, end))

    with LocalExecutor([Slot(index) for index in range(slots)], preload=()) as executor:
        run_tasks(executor, [Task(num, sleep) for num in range(slots)])  # the agent is ready now
        cpu = time.process_time()
        run_tasks(executor, [Task(num, sleep) for num in range(count)], callbacks=Callbacks(note))
        cpu = time.process_time() - cpu
    first, last = min(begin for begin, _ in spans), max(begin for begin, _ in spans)
    spent = sum(min(end, last) - begin for begin, end in spans)
    return 1 - spent / (slots * (last - first)), cpu / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000, help="generated jobs (default: 100000)")
    parser.add_argument("--slots", type=int, default=1000, help="slots of these jobs (default: 1000)")
    parser.add_argument("--sleeping", type=int, default=500, help="sleeping jobs (default: 500; 0: none)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        seconds = sorted(write(directory, options.jobs, options.slots))
        each = sum(seconds) / len(seconds) * 1e6
        most = seconds[int(len(seconds) * 0.99)] * 1e6
        print(f"{len(seconds)} events of {options.jobs} jobs on {options.slots} slots: {each:.1f} us of CPU "
              f"time each, median {median(seconds) * 1e6:.1f} us, 99 % {most:.1f} us")  # fmt: skip
        size = (directory / FILE).stat().st_size / 1e6
        begin, cpu = time.perf_counter(), time.process_time()
        scheduler = Scheduler()
        manifest = Manifest.open(directory, scheduler.handle)
        took, used = time.perf_counter() - begin, time.process_time() - cpu
        assert all(scheduler.state(num) == "done" for num in manifest.entries)
        print(f"A manifest of {size:.0f} MB was replayed in {took:.2f} s ({used:.2f} s of CPU time).")
    if options.sleeping:
        share, cpu = idle(options.sleeping, 8)
        print(f"{options.sleeping} jobs that sleep {SLEEP} s on 8 slots: idle {share:.2%} while a job waits; the head "
              f"takes {cpu * 1e3:.1f} ms of CPU time per job")  # fmt: skip


if __name__ == "__main__":
    main()
