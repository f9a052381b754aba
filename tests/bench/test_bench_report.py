"""The page of results, and sides that take turns."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"

if TYPE_CHECKING:
    from collections.abc import Callable

FACTS = {
    "date": "2030-01-01 00:00 UTC",
    "commit": "abc",
    "changed": False,
    "command": "python scripts/bench/run.py --rounds 3",
    "rounds": 3,
    "quick": False,
    "threads": 1,
    "machine": {"cpu": "a processor", "cores": 2, "memory_gb": 8, "system": "Linux"},
    "versions": {"Python": "3.11", "torch": "2.13.0"},
}


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def table(**more: Any) -> dict[str, Any]:
    return {
        "title": "Step of a small MLP",
        "unit": "µs per iteration",
        "values": {"ours": [45.0, 60.0, 44.0], "plain": [100.0, 120.0, 100.0]},
        "failed": {},
        "comparisons": [],
    } | more


def page(*tables: dict[str, Any], error: str | None = None) -> str:
    from report import markdown

    return markdown({**FACTS, "cases": {"step": {"about": "What it is.\n", "tables": list(tables), "error": error}}})


def test_ratios_are_taken_round_by_round() -> None:
    """The second round was slow for both: its ratio is 0.5, as the medians' ratio never would be."""
    text = page(table(comparisons=[{"of": "ours", "to": "plain", "reach": 0.4, "kind": "ratio"}]))
    assert "| ours | 45.0 | 44.0 to 60.0 |" in text
    assert "| ours / plain | 0.450 | 0.440 to 0.500 | ≤ 0.4 | missed by 0.050 |" in text


def test_a_goal_that_is_met() -> None:
    text = page(table(comparisons=[{"of": "ours", "to": "plain", "reach": 0.48, "kind": "ratio"}]))
    assert "| ≤ 0.48 | reached |" in text


def test_differences_and_values() -> None:
    text = page(
        table(
            values={"ours": [1.6, 1.7], "plain": [1.5, 1.5]},
            comparisons=[
                {"of": "ours", "to": "plain", "reach": 0.3, "kind": "difference"},
                {"of": "ours", "to": None, "reach": 1.0, "kind": "value"},
            ],
        )
    )
    assert "| ours - plain | 0.150 | 0.100 to 0.200 | ≤ 0.3 | reached |" in text
    assert "| ours | 1.650 | 1.600 to 1.700 | ≤ 1 | missed by 0.650 |\n| plain | 1.500 | 1.500 to 1.500 | | |\n" in text
    assert text.count("| ours | ") == 1, "a figure with a goal is in one table"


def test_a_peer_that_fails_is_named() -> None:
    comparison = {"of": "ours", "to": "peer", "reach": None, "kind": "ratio"}
    text = page(table(failed={"peer": "ModuleNotFoundError: No module named 'peer'"}, comparisons=[comparison]))
    assert "| peer | failed | ModuleNotFoundError: No module named 'peer' |" in text
    assert "| ours / peer | | peer failed |\n" in text


def test_a_case_that_fails_is_told() -> None:
    assert "Not measured: RuntimeError: no server" in page(error="RuntimeError: no server")


@contextmanager
def counting(step: float) -> Iterator[Callable[[], float]]:
    """Turns that take 1, 2, 3, … times `step`."""
    turns = 0

    def turn() -> float:
        nonlocal turns
        turns += 1
        return turns * step

    yield turn


@contextmanager
def missing() -> Iterator[Callable[[], float]]:
    import a_peer_that_is_not_there  # noqa: F401

    yield lambda: 0.0


def test_sides_take_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh process a round, whose first turn is not counted; one that fails is named, and the others go on."""
    from measure import Session, take_turns

    here = Path(__file__)
    monkeypatch.syspath_prepend(str(here.parent))  # the processes import this file by name
    module = __import__(here.stem)
    assert sys.modules[here.stem] is module
    sides = {"a": partial(module.counting, 1.0), "b": partial(module.counting, 10.0), "gone": module.missing}
    session = Session(rounds=2, quick=True, full=False, device="cpu", folder=tmp_path)
    values, failed = take_turns(session, sides, turns=3)
    assert values == {"a": [3.0, 3.0], "b": [30.0, 30.0]}
    assert list(failed) == ["gone"]
    assert failed["gone"].startswith("ModuleNotFoundError: No module named 'a_peer_that_is_not_there'")
    assert "round 2 of 2" in capsys.readouterr().out


@contextmanager
def process() -> Iterator[Callable[[], float]]:
    yield lambda: float(os.getpid())


def test_sides_may_share_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from measure import Session, take_turns

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    module = __import__(Path(__file__).stem)
    session = Session(rounds=2, quick=True, full=False, device="cpu", folder=tmp_path)
    sides = {"a": module.process, "b": module.process}
    values, _ = take_turns(session, sides, turns=1, together=True)
    assert values["a"] == values["b"] != [float(os.getpid())] * 2
    assert len(set(values["a"])) == 2, "each round has one of its own"
    values, _ = take_turns(session, sides, turns=1)
    assert not set(values["a"]) & set(values["b"])
    values, failed = take_turns(session, {"a": module.process, "gone": module.missing}, together=True)
    assert values == {}
    assert list(failed) == ["a", "gone"]


def test_cases_of_another_time_are_kept(tmp_path: Path) -> None:
    from report import kept, markdown

    case = {"about": "What it is.\n", "tables": [table()], "error": None}
    file = tmp_path / "figures.json"
    before = {**FACTS, "device": "cpu", "date": "2029-12-31 00:00 UTC", "commit": "old", "cases": {"step": case}}
    file.write_text(json.dumps(before))
    now = {**FACTS, "device": "cpu"}
    text = markdown({**now, "cases": kept(file, now)})
    assert "| commit | abc |" in text
    assert (
        "`python scripts/bench/run.py --only step`. Measured 2029-12-31 00:00 UTC at commit old, in 3 rounds." in text
    )
    assert "What it is." not in text, "the description is that of the case's file"
    assert "Time of an iteration: rings data" in text
    assert "Measured" not in markdown({**before, "cases": kept(file, now)})
    with pytest.raises(SystemExit, match=r"threads is 1 in this file, but 2 now"):
        kept(file, {**now, "threads": 2})


def test_sides_that_start_processes_of_their_own(tmp_path: Path) -> None:
    from measure import Session, take_turns_here

    numbers = iter(range(10))

    def broken() -> float:
        raise RuntimeError("no more")

    session = Session(rounds=2, quick=True, full=False, device="cpu", folder=tmp_path)
    values, failed = take_turns_here(session, {"a": lambda: float(next(numbers)), "b": broken})
    assert values == {"a": [1.0, 2.0]}  # the first is not counted
    assert failed == {"b": "RuntimeError: no more"}


def test_what_cases_there_are() -> None:
    """Every case of the list has a file, and every file is a case."""
    from run import CASES, ON_CUDA

    assert {*CASES, *ON_CUDA} == {path.stem for path in (BENCH / "cases").glob("*.py")} - {"__init__"}


def test_the_page_has_the_descriptions_of_the_cases() -> None:
    from report import about

    from run import CASES

    text = (BENCH.parents[1] / "docs/benchmarks.md").read_text(encoding="utf-8")
    for case in CASES:
        assert f"\n\n{about(case).strip()}\n\n`python scripts/bench/run.py --only {case}`" in text, case
