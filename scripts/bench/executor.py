"""What a task costs that does nothing: the local executor against a fresh interpreter that imports torch.

All slots of this machine are used, or as many as are asked for; the interpreters too are started as many at a time.

    python scripts/bench/executor.py [--tasks 200] [--interpreters 10] [--slots N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from trainyard.sweep.executor import LocalExecutor, find_slots
from trainyard.sweep.jobs import Task


def nothing(argument: object) -> None:
    """Returns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--interpreters", type=int, default=10)
    parser.add_argument("--slots", type=int, help="the most slots to use")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    slots = find_slots(max_jobs=options.slots)

    with LocalExecutor(slots) as executor:
        begin = perf_counter()
        executor.run([Task(0, nothing)])
        first = perf_counter() - begin
        begin = perf_counter()
        outcomes = executor.run([Task(num, nothing) for num in range(options.tasks)])
        each = (perf_counter() - begin) / options.tasks
    assert all(outcome.state == "done" for outcome in outcomes)
    latency = statistics.median(outcome.seconds for outcome in outcomes)

    begin = perf_counter()
    for first_of_wave in range(0, options.interpreters, len(slots)):
        wave = range(first_of_wave, min(first_of_wave + len(slots), options.interpreters))
        for process in [subprocess.Popen([sys.executable, "-c", "import torch"]) for _ in wave]:
            process.wait()
    fresh = (perf_counter() - begin) / options.interpreters

    figures = {
        "slots": len(slots),
        "first_task_s": first,
        "per_task_ms": each * 1e3,
        "task_median_ms": latency * 1e3,
        "fresh_interpreter_ms": fresh * 1e3,
        "ratio": fresh / each,
    }
    print(f"{len(slots)} slots, {options.tasks} tasks, {options.interpreters} interpreters")
    print(f"first task, server start included  {first:8.2f} s")
    print(f"a task, of all at work             {each * 1e3:8.1f} ms")
    print(f"a task, from start to end, median  {latency * 1e3:8.1f} ms")
    print(f"a fresh interpreter with torch     {fresh * 1e3:8.1f} ms")
    print(f"ratio                              {fresh / each:8.1f}")
    if options.json:
        options.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
