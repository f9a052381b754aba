"""Sweeps of up to 100,000 jobs on 1,000 slots: the real command on simulated nodes (`pretended.py`).

    python scripts/bench/scale.py [--jobs 1000 10000 100000] [--slots 1000] [--tracked 10000] [--nodes] [--json FILE]

The sweep has its usual checks, manifest, scheduler and journals and, if it is tracked, the shipper and MLflow's SQLite
database. A job takes about two seconds (`--seconds`) and computes nothing. The table shows for each sweep: the time of
the head until the plan is recorded, while jobs run, and afterwards; the memory of the head; the size of the manifest,
and the time to replay it. CPU time is counted by the kernel, so other load on the machine changes it little.

`--nodes` compares the jobs per second of four nodes with those of one node.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MARKED = "marked "
GRID = 50  # learning rates of a grid


def command(jobs: int, directory: Path, *, agents: int, slots: int, seconds: float, tracked: bool) -> list[str]:
    """Return the command of a sweep: `main` of this file in a process of its own."""
    rates = min(GRID, jobs)
    grid = [f"optim.lr=range(1,{rates + 1})", f"seed=range({jobs // rates})", "data=digits", "model=mlp"]
    tracker = [f"tracker.uri=sqlite:///{directory}.db", "tracker.wait=36000"] if tracked else ["tracker=none"]
    own = {"agents": agents, "slots": slots, "seconds": seconds}
    settings = [f"hydra.sweep.dir={directory}", "hydra.launcher.fuse=off"]
    return [sys.executable, __file__, "--child", json.dumps(own), "-m", *grid, *tracker, *settings]


def measured(jobs: int, folder: Path, *, agents: int, slots: int, seconds: float, tracked: bool) -> dict[str, float]:
    """Run a sweep, and return what it took."""
    directory = folder / "sweep"
    output = folder / "output"
    with output.open("w") as file:
        status = subprocess.run(
            command(jobs, directory, agents=agents, slots=slots, seconds=seconds, tracked=tracked),
            cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=file, stderr=file, check=False,
        ).returncode  # fmt: skip
    lines = output.read_text().splitlines()
    marks = {name: Mark(**each) for name, each in _marks(lines).items()}
    if status or "end" not in marks:
        sys.exit("\n".join(["The sweep failed.", *lines[-20:]]))
    begin, planned, ran, end = (marks[name] for name in ("begin", "planned", "ran", "end"))
    count = jobs // min(GRID, jobs) * min(GRID, jobs)
    found = {
        "jobs": count,
        "plan_seconds": planned.cpu - begin.cpu,
        "plan_mib": planned.peak,
        "head_ms": (ran.cpu - planned.cpu) / count * 1e3,
        "run_wall": ran.wall - planned.wall,
        "end_seconds": end.cpu - ran.cpu,
        "end_wall": end.wall - ran.wall,
        "peak_mib": end.peak,
        "manifest_mb": (directory / "manifest.jsonl").stat().st_size / 1e6,
    }
    found |= _replayed(directory)
    if tracked:
        found |= _rows(folder / "sweep.db", end.wall - planned.wall)
    return found


def _marks(lines: list[str]) -> dict[str, dict[str, float]]:
    found = [json.loads(line.removeprefix(MARKED)) for line in lines if line.startswith(MARKED)]
    return {each.pop("name"): each for each in found}


def _replayed(directory: Path) -> dict[str, float]:
    """Return the processor time for reading a manifest, and how many events it has; in a process of its own."""
    code = (
        "import sys, time, json; from pathlib import Path\n"
        "from trainyard.sweep.manifest import Manifest; from trainyard.sweep.scheduler import Scheduler\n"
        "scheduler, events, begin = Scheduler(), [], time.process_time()\n"
        "Manifest.open(Path(sys.argv[1]), lambda event: (events.append(1), scheduler.handle(event)))\n"
        "print(json.dumps({'replay_seconds': time.process_time() - begin, 'events': len(events)}))"
    )
    out = subprocess.run([sys.executable, "-c", code, directory], capture_output=True, text=True, check=True).stdout
    found: dict[str, float] = json.loads(out)
    return found


def _rows(database: Path, wall: float) -> dict[str, float]:
    import sqlite3

    with sqlite3.connect(database) as connection:
        (rows,) = connection.execute("select count(*) from metrics").fetchone()
    return {"rows": rows, "rows_per_second": rows / wall, "database_mb": database.stat().st_size / 1e6}


def rate(agents: int, folder: Path) -> float:
    """Return the jobs that nodes of 8 slots start in a second, after the first ones: each takes the place of one."""
    slots = 8 * agents
    jobs = slots * 10
    own = command(jobs, folder / "sweep", agents=agents, slots=8, seconds=10.0, tracked=False)
    own[own.index("-m") + 1 : own.index("-m") + 3] = ["optim.lr=0.1", f"seed=range({jobs})"]
    subprocess.run(own, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=True)
    records = [json.loads(line) for line in (folder / "sweep" / "manifest.jsonl").read_text().splitlines()]
    begun = [record["time"] for record in records if record["kind"] == "state" and record["state"] == "running"]
    assert len(begun) == jobs
    return float((jobs - slots) / (max(begun) - min(begun)))


# -- the process of a sweep --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """Seconds of the clock and of the processor, and the most memory so far in MiB."""

    wall: float
    cpu: float
    peak: float


def mark(name: str) -> None:
    found = {"wall": time.perf_counter(), "cpu": time.process_time()}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(MARKED + json.dumps({"name": name, **found, "peak": peak}), flush=True)


def child(own: dict[str, Any]) -> None:
    """Run the command of `sys.argv` on nodes that pretend, and print marks."""
    import atexit

    mark("begin")
    atexit.register(mark, "end")
    from pretended import PretendedPool

    import hydra_plugins.trainyard_launcher as plugin
    from trainyard.app import main
    from trainyard.sweep.agent_settings import AgentSettings
    from trainyard.sweep.executor.pool import Pool
    from trainyard.sweep.executor.shipping.files import HeadFiles
    from trainyard.sweep.head import Head

    class Settings(AgentSettings):
        agent_gpus, agent_cpus, listens_at = 0, own["slots"], "127.0.0.1"

        def pool(self, directory: Path, most: int, files: HeadFiles) -> Pool:
            return PretendedPool(directory, [word for key, value in own.items() for word in (f"--{key}", str(value))])

    class MarkedHead(Head):
        def run(self) -> None:
            mark("planned")
            super().run()
            mark("ran")

    import trainyard.sweep.sweep as sweep

    slots = own["agents"] * own["slots"]
    plugin.LocalLauncher._checked_settings = lambda self: Settings(fuse="off", max_slots=slots, idle=600.0)  # type: ignore[method-assign]
    vars(sweep)["Head"] = MarkedHead
    main(str(ROOT / "conf"))


# -- tables ------------------------------------------------------------------------------------------------------------

COLUMNS = {
    "jobs": ("jobs", "{:,.0f}"),
    "plan_seconds": ("plan, CPU s", "{:.1f}"),
    "plan_mib": ("MiB", "{:,.0f}"),
    "head_ms": ("head, CPU ms per job", "{:.2f}"),
    "run_wall": ("run, s", "{:.0f}"),
    "end_seconds": ("end, CPU s", "{:.1f}"),
    "peak_mib": ("MiB", "{:,.0f}"),
    "events": ("events", "{:,.0f}"),
    "manifest_mb": ("manifest, MB", "{:.1f}"),
    "replay_seconds": ("replay, CPU s", "{:.1f}"),
    "rows": ("rows in MLflow", "{:,.0f}"),
    "rows_per_second": ("rows a second", "{:,.0f}"),
    "end_wall": ("end, s", "{:.0f}"),
    "database_mb": ("database, MB", "{:.0f}"),
}


def table(rows: list[dict[str, float]]) -> str:
    """Return a table in Markdown."""
    columns = {key: told for key, told in COLUMNS.items() if key in rows[0]}
    lines = [
        "| " + " | ".join(title for title, _ in columns.values()) + " |",
        "|" + "---:|" * len(columns),
        *("| " + " | ".join(form.format(row[key]) for key, (_, form) in columns.items()) + " |" for row in rows),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, nargs="*", default=[1000, 10_000, 100_000], help="jobs of sweeps")
    parser.add_argument("--tracked", type=int, nargs="*", default=[], help="jobs of sweeps that are tracked in MLflow")
    parser.add_argument("--slots", type=int, default=1000, help="slots of four nodes together (default: 1000)")
    parser.add_argument("--seconds", type=float, default=2.0, help="mean duration of a job (default: 2)")
    parser.add_argument("--nodes", action="store_true", help="compare four nodes with one node")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name, sizes, tracked in (("alone", options.jobs, False), ("tracked", options.tracked, True)):
        for jobs in sizes:
            with tempfile.TemporaryDirectory(prefix="trainyard-scale-", ignore_cleanup_errors=True) as folder:
                own = {"agents": 4, "slots": options.slots // 4, "seconds": options.seconds}
                found.setdefault(name, []).append(measured(jobs, Path(folder), tracked=tracked, **own))
            print(table(found[name]), flush=True)
    if options.nodes:
        rates = {}
        for agents in (1, 4):
            with tempfile.TemporaryDirectory(prefix="trainyard-scale-", ignore_cleanup_errors=True) as folder:
                rates[agents] = rate(agents, Path(folder))
        found["nodes"] = rates
        print(f"Jobs per second: one node {rates[1]:.1f}, four nodes {rates[4]:.1f}; ratio {rates[4] / rates[1]:.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        own = json.loads(sys.argv[2])
        del sys.argv[1:3]
        child(own)
    else:
        main()
