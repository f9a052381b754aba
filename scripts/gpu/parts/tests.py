"""Tests marked `gpu`, in several parallel processes; each result is written immediately.

The tests are divided into shares. If the process of a share ends, hangs or leaves CUDA in an error state, the result of
its current test is lost, and another process continues with the next test. A file that cannot be imported counts as a
failed test, and does not stop the other tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import monotonic

from part import Part, run
from pytest_results import RUNNING, WAITING, WITHOUT, Outcomes, count, outcomes_of
from results import Content, Results

ROOT = Path(__file__).resolve().parents[3]
SHARES = 4
PATIENCE = {"cuda": 40.0, "cpu": 600.0}
"""Seconds without a new result after which a process is ended."""


def main(part: Part) -> None:
    every = sorted((ROOT / "tests").rglob("test_*.py"))
    # Others may import what is not here, MLflow for one.
    files = [str(file.relative_to(ROOT)) for file in every if "pytest.mark.gpu" in file.read_text(encoding="utf-8")]
    shares = part.size(SHARES, 1)
    patience = PATIENCE["cuda" if part.cuda else "cpu"]
    with ThreadPoolExecutor(shares) as pool:
        running = [pool.submit(run_share, part.results, files, (number, shares), patience) for number in range(shares)]
        for each in running:
            each.result()
    outcomes = outcomes_of(part.results.read())
    failed = [name for name, own in outcomes.items() if own["outcome"] not in ("passed", "skipped")]
    if failed:
        part.fail(f"{len(failed)} of {len(outcomes)} tests: {', '.join(failed)}"[:1000])
    if not outcomes or (part.cuda and not any(own["outcome"] == "passed" for own in outcomes.values())):
        part.fail("no test has passed")


def run_share(results: Results, files: list[str], share: tuple[int, int], patience: float) -> None:
    """Run all tests of a share, in one or more processes.

    Args:
        results: the file to which the plugin writes the results.
        files: the files of all tests.
        share: the number of the share, and the number of shares.
        patience: seconds without a new result after which a process is ended.
    """
    number, shares = share
    while True:
        before = finished(results, number)
        run_process(results, [*files, "--share", f"{number}/{shares}"], number, patience)
        results.change(partial(give_up, share=number, outcome=RUNNING))
        if not any(own["outcome"] == WAITING for own in of_share(results, number).values()):
            return
        if finished(results, number) == before:
            results.change(partial(give_up, share=number, outcome=WAITING))
            return


def run_process(results: Results, arguments: list[str], share: int, patience: float) -> None:
    """Run tests in one process, until it ends or has no new result for `patience` seconds."""
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "-p", "pytest_results", "--results", str(results.path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "--continue-on-collection-errors", *options, *arguments],
        cwd=ROOT,
        # cuBLAS reads it when it is first used: its kernels then add up in one order.
        env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    )
    seen, since = dict[str, str](), monotonic()
    while monotonic() - since < patience:
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            now = {name: own["outcome"] for name, own in of_share(results, share).items()}
            if now != seen:
                seen, since = now, monotonic()
        else:
            return
    process.kill()
    process.wait()


def of_share(results: Results, share: int) -> Outcomes:
    """Return the results of a share's tests."""
    return {name: own for name, own in outcomes_of(results.read()).items() if own["share"] == share}


def finished(results: Results, share: int) -> int:
    """Return the number of tests of a share that have started."""
    return sum(own["outcome"] != WAITING for own in of_share(results, share).values())


def give_up(content: Content, *, share: int, outcome: str) -> None:
    """Mark the tests of a share with this outcome (waiting or running) as without a result."""
    for own in outcomes_of(content).values():
        if own["share"] == share and own["outcome"] == outcome:
            own["outcome"] = WITHOUT
    count(content)


if __name__ == "__main__":
    run(main)
