"""Torture: tests the guarantees of Trainyard with random cases, which are drawn from a seed.

    python scripts/torture.py runs --seed 1 --cases 100     # one part, a hundred cases
    python scripts/torture.py all --json torture.json       # all parts, with the number of cases that CI runs
    python scripts/torture.py runs --seed 1 --case 17       # repeat a single case

The parts are defined in scripts/torture/. If a case fails, the fault and the command that repeats the case are printed,
the exit status is 1, and the files of the case are kept. The same seed and number always give the same case. A case
that depends on the clock or on the order of several processes can have another result when it is repeated. Ctrl-C ends
a part; the completed cases count.

`--page` writes the results to the table of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
sys.path.insert(0, str(Path(__file__).parent / "torture"))

import damage
import lengths
import overrides
import reliability_page
import runs
import stacks
import sweeps
import values
from trials import Part, Result

PARTS = {
    part.name: part
    for part in (
        *(runs.PART, sweeps.PART, lengths.PART, stacks.PART),
        *(overrides.PART, values.PART, damage.CHECKPOINTS, damage.JOURNALS),
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the cases that the command line names; return the exit status."""
    options = _parse(arguments)
    parts = PARTS.values() if "all" in options.parts else [PARTS[name] for name in options.parts]
    folder = Path(tempfile.mkdtemp(prefix="trainyard-torture-"))
    rows = [_try(part, options, folder / part.name) for part in parts]
    print(reliability_page.as_text(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if options.page:
        reliability_page.write(rows)
    failed = any(row.faults for row in rows)
    if failed:
        print(f"Files of the failed cases: {folder}")
    else:
        shutil.rmtree(folder)
    return int(failed)


def _try(part: Part, options: argparse.Namespace, folder: Path) -> reliability_page.Row:
    number = part.complete() if options.complete and part.complete else options.cases or part.usual
    own = range(number) if options.case is None else [options.case]
    results: list[Result] = []
    try:
        for result in part.results(options.seed, own, folder, options.also):
            results.append(result)
            _tell(result, options.also)
    except KeyboardInterrupt:
        print(f"Interrupted after {len(results)} cases of {part.name}.")
    return reliability_page.row(part, options.seed, results)


def _tell(result: Result, also: Sequence[str]) -> None:
    verdict = "held" if result.fault is None else "FAILED"
    print(f"{result.part} {result.case}  {verdict}  {result.seconds:.1f} s  {result.what}", flush=True)
    if result.fault is not None:
        command = ["python", "scripts/torture.py", result.part, "--seed", str(result.seed), "--case", str(result.case)]
        for override in also:
            command += ["--also", override]
        print(f"{result.fault}\nrepeat: {shlex.join(command)}", flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "all"], help="parts to run, or all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random cases (default: 0)")
    parser.add_argument("--cases", type=int, help="number of cases per part (default: as in CI)")
    parser.add_argument(
        "--complete", action="store_true", help="all cases of a part that has an end (values: every key of conf/)"
    )
    parser.add_argument("--case", type=int, help="run only the case with this number")
    parser.add_argument(
        "--also", action="append", default=[], metavar="OVERRIDE", help="additional override of each command"
    )
    parser.add_argument("--json", type=Path, help="write the table to this file")
    parser.add_argument("--page", action="store_true", help="write the results into the table of docs/reliability.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    sys.exit(main())
