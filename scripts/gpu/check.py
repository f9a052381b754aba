"""Runs the parts of the check, each in a separate process with a time limit, and prints their states.

    python scripts/gpu/check.py --json FILE --device cuda --folder DIR [--spent SECONDS] [--only PART,PART]

`scripts/gpu_check.sh` calls this script and sets PYTHONPATH. The exit status is 1 if a part is not done.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

from results import Results

from catalog import PARTS, TOTAL, Part

ROOT = Path(__file__).resolve().parents[2]
ON_CPU = 10
"""Factor of the limits on the CPU, where they only end parts that hang."""
SHORT = 5.0
"""If fewer seconds are left, no part is started."""
GRACE = 3.0
"""Seconds for a part to end the processes that it has started, after its time limit."""
TAIL = 3000
"""Characters of a failed part's output that are kept."""


class Check:
    """Runs parts of the check.

    Args:
        results: the file of the results.
        device: `cuda`, `cuda:1` or `cpu`.
        folder: a folder for temporary files.
        quick: whether to use the smallest sizes.
        spent: the seconds of the total time limit that have already passed.
    """

    def __init__(self, results: Results, device: str, folder: Path, quick: bool, spent: float) -> None:
        self.results = results
        self._factor = ON_CPU if device == "cpu" else 1
        self._deadline = time.monotonic() + self._factor * TOTAL - spent
        self._arguments = ["--json", str(results.path), "--device", device, *(["--quick"] if quick else [])]
        self._folder = folder
        self._running: dict[str, _Process] = {}

    def run(self, part: Part) -> None:
        """Run a part to its end or its limit; a part with `beside` is only started."""
        if part.timed:
            self.wait()  # for what runs beside
        left = self._deadline - time.monotonic()
        if left < SHORT:
            self.results.part(part.name, state="not run", error=f"no time is left (limit: {self._factor * TOTAL} s)")
            print(f"{part.name}: not run, no time is left", flush=True)
            return
        self.results.part(part.name, state="running", seconds=None, error=None, tables={}, each={})
        self._running[part.name] = _Process(part, self._arguments, self._folder, min(self._factor * part.limit, left))
        if not part.beside:
            self._finish(part.name)

    def wait(self) -> None:
        """Wait for the parts that were only started."""
        for name in list(self._running):
            self._finish(name)

    def kill(self) -> None:
        """Kill all running parts."""
        for process in self._running.values():
            process.kill()

    def _finish(self, name: str) -> None:
        process = self._running[name]
        state, error = process.wait()
        del self._running[name]
        seconds = round(time.monotonic() - process.begun, 1)
        output = process.output()
        self.results.part(name, state=state, seconds=seconds, error=error, output=output[-TAIL:] if error else None)
        print(f"\n== {name}: {state} after {seconds:.0f} s{f': {error}' if error else ''}", flush=True)
        print(output if error else output[-TAIL:], end="", flush=True)


class _Process:
    """Process of a part, which leads a process group."""

    def __init__(self, part: Part, arguments: list[str], folder: Path, limit: float) -> None:
        self.begun = time.monotonic()
        self._limit = limit
        self._log: IO[bytes] = (folder / f"{part.name}.log").open("w+b")  # a pipe would wait for what a part leaves
        own = folder / part.name
        own.mkdir()
        more = ["--folder", str(own), "--until", str(self.begun + limit), *arguments]
        command = [sys.executable, "-m", f"parts.{part.module}", part.name, *more]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> tuple[str, str | None]:
        """Return the state in which the part ended, and the error."""
        try:
            status = self._process.wait(max(0.0, self.begun + self._limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
            return "ended", f"not finished within {self._limit:.0f} s"
        finally:
            self.kill()
        if status == 0:
            return "done", None
        lines = self.output().strip().splitlines()
        return "failed", lines[-1] if lines else f"exit status {status}"

    def kill(self) -> None:
        """Kill the process, and the processes that it has started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._process.wait()

    def output(self) -> str:
        """Return the output."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")


def main() -> int:
    options = parse()
    results = Results(options.json)
    quick = options.quick or options.device == "cpu"
    if options.device == "cpu":  # a part and what it starts would have as many threads as there are cores, each
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    check = Check(results, options.device, options.folder, quick, options.spent)

    def end(signum: int, frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    chosen = [part for part in PARTS if not options.only or part.name in options.only]
    results.change(lambda content: content.update(sizes="quick" if quick else "full"))
    try:
        for part in chosen:
            check.run(part)
        check.wait()
    finally:
        check.kill()
    parts = results.read()["parts"]
    print(f"\n{'part':<13} {'state':<9} {'seconds':>7}  error")
    for part in chosen:
        own = parts[part.name]
        print(f"{part.name:<13} {own['state']:<9} {own.get('seconds') or 0:>7.0f}  {own['error'] or ''}")
    print(f"The results are in {results.path}.")
    return int(any(parts[part.name]["state"] != "done" for part in chosen))


def parse() -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the file of the results")
    parser.add_argument("--device", required=True, help="cuda, cuda:1 or cpu")
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder for temporary files")
    parser.add_argument(
        "--spent", type=float, default=0.0, help="seconds of the total time limit that have already passed"
    )
    parser.add_argument(
        "--only", type=lambda text: text.split(","), help=f"parts to run, separated by commas: {', '.join(names)}"
    )
    parser.add_argument("--quick", action="store_true", help="use the smallest sizes, as always on the CPU")
    options = parser.parse_args()
    unknown = set(options.only or ()) - set(names)
    if unknown:
        parser.error(f"--only {','.join(sorted(unknown))}: the parts are {', '.join(names)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
