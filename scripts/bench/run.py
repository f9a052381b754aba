"""Benchmarks of Trainyard and other tools: writes docs/benchmarks.md, and all figures as JSON.

    python scripts/bench/run.py [--only CASE,CASE] [--keep FILE] [--rounds N] [--quick | --full] [--json FILE]

The script runs in `.venv-bench`, which is created if it is missing (see environment.py). With `--here`, the script runs
in the current interpreter, with the tools that are installed there. The page is written if there are figures of all
cases, but not with `--quick`. `--page FILE` always writes the page to FILE. A JSON file next to the page contains each
figure with a goal, and plot.py draws the picture of the README from that of docs/benchmarks.md. Do not use the machine
during the measurement, because other load makes the figures less exact. `--keep FILE` takes the cases that are not run
from an older file of figures, which was measured on the same machine with the same versions; the page shows when each
of these cases was measured. `compare.py` compares two files of figures, or two revisions of this project.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import environment
import plot
from measure import Session, Table

CASES = (
    "step",
    "models",
    "compiled",
    "startup",
    "tracking",
    "stall",
    "validation",
    "resume",
    "memory",
    "data",
    "sweep",
    "fused",
    "trial",
    "lanes",
    "population",
    "growth",
    "growth_of_runs",
    "growth_of_state",
    "growth_of_validation",
    "growth_of_sweeps",
    "ddp",
    "search",
)
ON_CUDA = ("captured",)
"""Cases for a CUDA device, which are not part of the page."""
PAGE = environment.ROOT / "docs" / "benchmarks.md"


def main() -> None:
    options = parse()
    environment.enter(options.here, options.threads)
    import report

    figures = report.facts(options)
    kept = report.kept(options.keep, figures) if options.keep else {}
    figures["cases"] = {name: kept[name] for name in CASES if name in kept}
    begin = time.monotonic()
    for number, name in enumerate(options.only, 1):
        print(f"[{number}/{len(options.only)}] {name}  ({(time.monotonic() - begin) / 60:.1f} min so far)", flush=True)
        figures["cases"][name] = run(name, options) | {"measured": {key: figures[key] for key in report.WHEN}}
        if options.json:  # after each case, so that an interrupted run keeps its measurements
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
    figures["minutes"] = (time.monotonic() - begin) / 60
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    page = options.page or (None if options.quick or set(CASES) - figures["cases"].keys() else PAGE)
    if page:
        page.write_text(report.markdown(figures))
        goals = page.with_suffix(".json")
        goals.write_text(json.dumps(report.goals(figures), indent=1) + "\n")
        print(f"Wrote {os.path.relpath(page)} and {goals.name}")
        if page.resolve() == PAGE:
            print(f"Wrote {', '.join(os.path.relpath(file) for file in plot.write())}")
    else:
        print(report.markdown(figures))
    print(f"Done in {figures['minutes']:.1f} minutes.")


def run(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Return the description and the tables of one case, or the reason why there are none."""
    case = importlib.import_module(f"cases.{name}")
    found: list[Table] = []
    error = None
    with tempfile.TemporaryDirectory(prefix="trainyard-bench-") as folder:
        session = Session(
            *(options.rounds, options.quick, options.full, options.device, Path(folder), options.replays, options.own)
        )
        try:
            for table in case.tables(session):
                found.append(table)
        except Exception as failure:  # the other cases continue; the page says which one failed
            error = f"{type(failure).__name__}: {failure}"
            print(f"    {name} failed: {error}", flush=True)
    return {"about": case.__doc__, "tables": [asdict(table) for table in found], "error": error}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help=f"cases to run, of {', '.join((*CASES, *ON_CUDA))}")
    parser.add_argument("--keep", type=Path, help="older figures (JSON), for the cases that are not run")
    parser.add_argument("--rounds", type=int, help="rounds of each comparison (default: 5; with --quick: 1)")
    parser.add_argument("--quick", action="store_true", help="use the smallest sizes, to test the benchmarks")
    parser.add_argument("--full", action="store_true", help="measure more models and widths in the case fused")
    parser.add_argument("--own", action="store_true", help="measure only the sides of this project, for compare.py")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--page", type=Path, help="always write the page, to this file")
    parser.add_argument("--threads", type=int, default=1, help="threads for CPU kernels, on all sides (default: 1)")
    parser.add_argument(
        "--device", default="cpu", help="device of step, models, ddp and captured: cpu (default) or cuda"
    )
    parser.add_argument("--replays", type=Path, help="folder for replays of searches; existing replays are reused")
    parser.add_argument("--here", action="store_true", help="use this interpreter, not .venv-bench")
    options = parser.parse_args()
    options.only = [name for name in options.only.split(",") if name]
    unknown = set(options.only) - {*CASES, *ON_CUDA}
    if unknown:
        parser.error(
            f"--only {','.join(sorted(unknown))}: unknown cases. The cases are {', '.join((*CASES, *ON_CUDA))}."
        )
    options.some = set(options.only) != set(CASES)
    options.rounds = options.rounds or (1 if options.quick else 5)
    return options


if __name__ == "__main__":
    main()
