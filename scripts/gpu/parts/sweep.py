"""Sweeps from the command line: a small sweep with features that a stack must support, and a complete sweep.

The sweeps are tracked only in journals. The states of the jobs are read from the manifest of the sweep, and their
progress from their journals and logs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from part import Part, run

from trainyard.sweep.entry import Entry
from trainyard.sweep.manifest import Manifest

ROOT = Path(__file__).resolve().parents[3]
OPTIONAL = ("pandas", "pyarrow")
"""Packages that write the result files at the end of a sweep, and that the check does not require."""
SMALL = (
    "model.hidden=[64,64]",
    "accumulate=2",
    "optim.lr=1e-3,1e-2",
    "seed=0,1,2,3,4,5,6,7",
    "hook=early_stop",
    "hook.early_stop.patience=1",
    "hook.early_stop.min_delta=0.02",
)
RATES = 32


def main(part: Part) -> None:
    if part.name == "sweep":
        epochs = part.size(40, 4)
        sweep(part, [*SMALL, f"loop.max_epochs={epochs}"], 16, epochs)
    else:
        epochs, rates, seeds = part.size((20, RATES, 8), (2, 4, 2))
        grid = [
            "model.hidden=[64,64]",
            "optim.lr=" + ",".join(f"{1e-4 * 1.15**number:.6f}" for number in range(rates)),
            "seed=" + ",".join(map(str, range(seeds))),
            f"loop.max_epochs={epochs}",
        ]
        sweep(part, grid, rates * seeds, epochs)


def sweep(part: Part, overrides: list[str], jobs: int, epochs: int) -> None:
    """Run a sweep, and write its results."""
    folder = part.folder / "sweep"
    device = "cuda" if part.cuda else "cpu"  # a job sees one device
    always = ["data=digits", "model=mlp", "optim=adam", "tracker=none", f"device={device}"]
    command = [sys.executable, "train.py", "-m", *always, *overrides, f"hydra.sweep.dir={folder}"]
    begin = perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seconds = perf_counter() - begin
    output = done.stdout.decode(errors="replace")
    print(output, flush=True)
    entries = Manifest.open(folder).entries
    states = Counter(entry.state for entry in entries.values())
    part.put(part.name, "jobs", found=", ".join(f"{count} {state}" for state, count in states.items()) or "none")
    if states != {"done": jobs}:
        part.fail(f"{states['done']} of {jobs} jobs are done")
    without = [module for module in OPTIONAL if find_spec(module) is None]
    if done.returncode and not (without and f"No module named '{without[0]}'" in output):
        part.fail(f"the sweep ended with status {done.returncode}")
    part.put(part.name, "stacks", found=stacks(entries), plan=planned(output))
    logs = [log.read_text(errors="replace") for log in sorted(folder.glob("*/train.log"))]
    said = Counter(line for log in logs for line in re.findall(r"The step is (?:not )?captured.*", log))
    nothing = "no message about the capture" if part.cuda else "needs CUDA"
    part.put(part.name, "capture", found="; ".join(f"{line} ({count})" for line, count in said.items()) or nothing)
    part.put(part.name, "seconds", found=f"{seconds:.1f}")
    journals = [read(file) for file in sorted(folder.glob("*/metrics.jsonl"))]
    validated = [sum("val/loss" in record.get("values", {}) for record in journal) for journal in journals]
    if part.name == "sweep":
        early = sum(0 < count < epochs for count in validated)
        part.put(part.name, "stopped early", found=f"{early} of {len(journals)}")
        return
    whole = validated.count(epochs)
    part.put(part.name, "journals", found=f"{whole} with {epochs} validations")
    if whole != jobs:
        part.fail(f"{whole} of {jobs} journals are complete")
    steps = sum(max((record.get("step", 0) for record in journal), default=0) for journal in journals)
    if steps:
        times = [record["time"] for journal in journals for record in journal]
        training = (max(times) - min(times)) / steps * 1e6
        found = f"{seconds / steps * 1e6:.2f}; from the first record to the last {training:.2f}"
        part.put(part.name, "µs per member step, overall", found=found, steps=steps)


def stacks(entries: dict[int, Entry]) -> str:
    """Return the numbers and widths of the stacks in which the jobs trained."""
    widths = Counter(entry.width for entry in entries.values())
    return ", ".join(f"{count // width} of {width}" for width, count in sorted(widths.items())) or "none"


def planned(output: str) -> list[str]:
    """Return the lines of the printed plan about stacks."""
    return [line.strip() for line in output.splitlines() if "as fast as" in line or "stack" in line.lower()]


def read(file: Path) -> list[dict[str, Any]]:
    """Return the records of a journal."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    run(main)
