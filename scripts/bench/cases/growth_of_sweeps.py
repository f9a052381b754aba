"""Growth of a sweep with its jobs: time of a job, and memory of the head, which is the process that the user starts.

`python train.py -m` runs learning rates and seeds on all cores, in stacks. A job is one epoch of an MLP 64-16-10 on the
digits data in batches of 256 (5 steps), without MLflow. The time is that of the entire command. The sweep of 10,000
jobs runs once.

**Result:** the time of a job does not grow. With 10,000 jobs, the head needs twice the memory that it needs with 10.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from environment import ROOT
from measure import Comparison, Session, Table, several_figures

from cases.memory import most

RATES = 10


def tables(session: Session) -> Iterator[Table]:
    figures: dict[str, dict[str, list[float]]] = {}
    failed: dict[str, str] = {}
    counts = (10, 20) if session.quick else (10, 100, 1_000, 10_000)
    few, *more = map(named, counts)
    for rounds, some in ((session.fewer(), counts[:3]), (session.once(), counts[3:])):
        sides = {named(count): partial(sweep, session.folder, count) for count in some}
        found, missing = several_figures(rounds, sides)
        for figure, values in found.items():
            figures.setdefault(figure, {}).update(values)
        failed |= missing
    comparisons = [Comparison(name, few) for name in more]
    yield Table("Sweep against jobs", "ms per job", figures.get("time", {}), failed, comparisons)
    yield Table("Memory of the head against jobs", "MB", figures.get("memory", {}), failed, comparisons)


def named(count: int) -> str:
    return f"{count:,} jobs"


def sweep(folder: Path, count: int) -> Mapping[str, float]:
    """Run a sweep; return the time per job in ms, and the peak memory of the head in MB."""
    from trainyard.sweep.manifest import Manifest

    rates = ",".join(f"{1e-3 * (number + 1):g}" for number in range(RATES))
    work = ["model=mlp", "model.hidden=[16]", "optim=adam", "loop.max_epochs=1", "data.batch_size=256", "tracker=none"]
    points = [f"optim.lr={rates}", f"seed=range({count // RATES})"]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        directory, output = Path(name, "sweep"), Path(name, "output")
        command = [sys.executable, str(ROOT / "train.py"), "-m", *work, *points, f"hydra.sweep.dir={directory}"]
        begin = time.perf_counter()
        with output.open("w") as file:
            head = subprocess.Popen(command, cwd=name, stdout=file, stderr=file)
        peak = 0.0
        while head.poll() is None:
            with suppress(OSError, StopIteration):  # it has just ended
                peak = max(peak, most(head.pid))
            time.sleep(0.02)
        seconds = time.perf_counter() - begin
        if head.returncode:
            raise RuntimeError(f"status {head.returncode}: {' '.join(output.read_text().split())[-200:]}")
        done = sum(entry.state == "done" for entry in Manifest.open(directory).entries.values())
        if done != count:
            raise RuntimeError(f"{done} of {count} jobs are done")
    return {"time": seconds / count * 1e3, "memory": peak}
