"""Planning of a large sweep: CPU time and memory until the plan is complete, as counted by the kernel.

    python scripts/bench/planning.py [--jobs 20000] [--fuse auto] [--json FILE]

The grid has two models, two optimizers, up to fifty learning rates, and seeds, on the digits data. The head is the
process that composes, checks and plans the jobs. The other processes are the agent, the check of the jobs and, unless
`--fuse` is `off` (the default), the probes of stacks. Their memory is that of the largest of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COUNTS = """
import atexit, json, resource, sys, time
began = time.perf_counter()
def write():
    found = {"seconds": time.perf_counter() - began}
    for name, who in (("head", resource.RUSAGE_SELF), ("others", resource.RUSAGE_CHILDREN)):
        used = resource.getrusage(who)
        found |= {f"{name}_cpu_seconds": used.ru_utime + used.ru_stime, f"{name}_peak_mib": used.ru_maxrss / 1024}
    print("counted", json.dumps(found))
atexit.register(write)
from trainyard.app import main
main(sys.argv.pop(1))
"""


def planned(jobs: int, fuse: str) -> dict[str, float]:
    """Plan a sweep in a process of its own, and return what it took."""
    rates = max(1, min(50, jobs // 40))
    seeds = max(1, round(jobs / (4 * rates)))
    grid = ["model=mlp,cnn", "optim=adam,sgd", f"optim.lr=range(1,{rates + 1})", f"seed=range({seeds})"]
    settings = ["tracker=none", f"hydra.launcher.fuse={fuse}", "hydra.launcher.dry_run=true"]
    with tempfile.TemporaryDirectory(prefix="trainyard-planning-") as folder:
        result = subprocess.run(
            [sys.executable, "-c", COUNTS, str(ROOT / "conf"), "-m", *grid, *settings],
            cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    counted = re.search(r"^counted (.*)$", result.stdout, re.MULTILINE)
    if result.returncode or counted is None:
        raise SystemExit(f"The sweep could not be planned.\n{result.stdout}{result.stderr}")
    return {"jobs": 4 * rates * seeds, **json.loads(counted[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--jobs", type=int, nargs="+", default=[3000, 20000], help="numbers of jobs (default: 3000 20000)"
    )
    parser.add_argument("--fuse", default="off", help="value of hydra.launcher.fuse (default: off)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    rows = [planned(jobs, options.fuse) for jobs in options.jobs]
    print(f"{'jobs':>8} {'seconds':>9} {'head: CPU s':>12} {'peak MiB':>9} {'others: CPU s':>14} {'peak MiB':>9}")
    for row in rows:
        print(
            f"{row['jobs']:>8.0f} {row['seconds']:>9.1f} {row['head_cpu_seconds']:>12.1f} {row['head_peak_mib']:>9.0f} "
            f"{row['others_cpu_seconds']:>14.1f} {row['others_peak_mib']:>9.0f}"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
