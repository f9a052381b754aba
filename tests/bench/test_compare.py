"""`scripts/bench/compare.py`: what is a regression, and what is noise."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
MACHINE = {"cpu": "a processor", "cores": 2}


def figures(ours: list[float], plain: list[float], **more: Any) -> dict[str, Any]:
    """A file of `run.py` with one table of two sides."""
    table = {
        "title": "Step",
        "unit": "µs",
        "values": {"ours": ours, "plain": plain},
        "failed": {},
        "comparisons": [
            {"of": "ours", "to": "plain", "reach": 0.5, "kind": "ratio"},
            {"of": "ours", "to": "plain", "reach": 0.3, "kind": "difference"},
        ],
    }
    case = {"about": "", "tables": [table | more], "error": None}
    return {"machine": MACHINE, "quick": False, "cases": {"step": case}}


def compare(folder: Path, old: dict[str, Any], new: dict[str, Any], *options: str) -> tuple[int, str]:
    """Exit status and output of the command."""
    paths = []
    for name, content in (("old", old), ("new", new)):
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(content))
    done = subprocess.run(
        [sys.executable, str(BENCH / "compare.py"), *map(str, paths), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.returncode, done.stdout


STEADY = [100.0, 101.0, 99.0, 100.5, 99.5]


def test_the_same_figures_are_no_regression(tmp_path: Path) -> None:
    same = figures([45.0, 45.2, 44.9, 45.1, 45.0], STEADY)
    status, said = compare(tmp_path, same, same)
    assert (status, said) == (0, "1 ratios compared, 0 regressions over 5 %.\n")


def test_a_ratio_that_rose_is_a_regression(tmp_path: Path) -> None:
    old = figures([45.0] * 5, STEADY)
    status, said = compare(tmp_path, old, figures([49.0] * 5, STEADY))
    assert status == 1
    assert "REGRESSION  Step: ours / plain: 0.450 -> 0.490, +8.9%" in said
    assert compare(tmp_path, old, figures([49.0] * 5, STEADY), "--over", "10")[0] == 0


def test_a_rise_of_less_is_none(tmp_path: Path) -> None:
    status, _ = compare(tmp_path, figures([45.0] * 5, STEADY), figures([46.8] * 5, STEADY))
    assert status == 0


def test_getting_faster_is_none(tmp_path: Path) -> None:
    assert compare(tmp_path, figures([45.0] * 5, STEADY), figures([30.0] * 5, STEADY))[0] == 0


def test_a_slower_machine_is_none(tmp_path: Path) -> None:
    """Both sides of the new file take twice the time."""
    old = figures([45.0] * 5, STEADY)
    assert compare(tmp_path, old, figures([90.0] * 5, [2 * value for value in STEADY]))[0] == 0


def test_a_rise_within_the_spread_is_noise(tmp_path: Path) -> None:
    old = figures([30.0, 40.0, 50.0, 60.0, 70.0], [100.0] * 5)
    status, _ = compare(tmp_path, old, figures([34.0, 44.0, 55.0, 66.0, 77.0], [100.0] * 5))
    assert status == 0


def test_one_bad_round_is_noise(tmp_path: Path) -> None:
    old = figures([45.0, 45.1, 45.2, 44.9, 44.8], [100.0] * 5)
    assert compare(tmp_path, old, figures([45.0, 45.1, 90.0, 44.9, 44.8], [100.0] * 5))[0] == 0


def test_a_rise_above_a_spread_is_told(tmp_path: Path) -> None:
    old = figures([42.0, 44.0, 45.0, 46.0, 48.0], [100.0] * 5)
    assert compare(tmp_path, old, figures([50.0, 52.0, 54.0, 55.0, 57.0], [100.0] * 5))[0] == 1


def test_a_side_that_fails_now_is_a_regression(tmp_path: Path) -> None:
    old = figures([45.0] * 5, STEADY)
    new = figures([], STEADY, values={"plain": STEADY}, failed={"ours": "ImportError: gone"})
    status, said = compare(tmp_path, old, new)
    assert status == 1
    assert "ours / plain: it failed" in said


def test_a_case_that_fails_now_is_a_regression(tmp_path: Path) -> None:
    old, new = figures([45.0] * 5, STEADY), figures([45.0] * 5, STEADY)
    new["cases"]["step"] |= {"tables": [], "error": "RuntimeError: no server"}
    status, said = compare(tmp_path, old, new)
    assert status == 1
    assert "REGRESSION  step: the case failed: RuntimeError: no server" in said


def test_cases_that_were_not_run_are_not_compared(tmp_path: Path) -> None:
    old, new = figures([45.0] * 5, STEADY), figures([90.0] * 5, STEADY)
    new["cases"]["another"] = new["cases"].pop("step")
    assert compare(tmp_path, old, new) == (0, "0 ratios compared, 0 regressions over 5 %.\n")


def test_noise_alone_is_hardly_ever_a_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures drawn twice from one distribution, whose spread is three times the limit."""
    monkeypatch.syspath_prepend(str(BENCH))
    from compare import Change

    rng = random.Random(0)

    def draw() -> list[float]:
        return [rng.gauss(1.0, 0.05) for _ in range(5)]

    flagged = sum(Change("", "", draw(), draw()).regressed(0.05) for _ in range(1000))
    assert flagged <= 30

    shifted = sum(Change("", "", draw(), [1.25 * value for value in draw()]).regressed(0.05) for _ in range(1000))
    assert shifted >= 950
