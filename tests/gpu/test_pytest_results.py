"""Each test's result is written as it comes; a test that ends its process loses its own result alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from waiting import FOREVER, Clock

TESTS = """
import os, pytest, time

@pytest.mark.gpu
def test_passes(): pass

@pytest.mark.gpu
def test_fails(): assert 1 == 2

@pytest.mark.gpu
def test_ends_its_process(): os._exit(3)

@pytest.mark.gpu
@pytest.mark.skipif(True, reason="not here")
def test_is_skipped(): pass

@pytest.mark.gpu
@pytest.mark.parametrize("number", range(3))
def test_comes_after(number): pass

def test_of_another_kind(): assert False
"""


@pytest.fixture
def results(tmp_path: Path) -> Any:
    from results import Results

    return Results(tmp_path / "results.json")


@pytest.fixture
def outcomes(tmp_path: Path, results: Any) -> Any:
    """Run tests in so many shares; returns what became of each."""
    from parts.tests import run_share
    from pytest_results import outcomes_of

    def outcomes(files: dict[str, str], shares: int = 1, patience: float = 600.0) -> Any:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        for share in range(shares):
            run_share(results, [str(tmp_path / name) for name in files], (share, shares), patience)
        return {name.rpartition("/")[2]: own["outcome"] for name, own in outcomes_of(results.read()).items()}

    return outcomes


@pytest.mark.parametrize("shares", [1, 2])
def test_every_test_has_its_result(outcomes: Any, results: Any, shares: int) -> None:
    found = outcomes({"test_some.py": TESTS}, shares)
    assert found == {
        "test_some.py::test_passes": "passed",
        "test_some.py::test_fails": "failed",
        "test_some.py::test_ends_its_process": "without a result",
        "test_some.py::test_is_skipped": "skipped",
        **{f"test_some.py::test_comes_after[{number}]": "passed" for number in range(3)},
    }
    part = results.read()["parts"]["tests"]
    (failed,) = [own for own in part["each"].values() if own["outcome"] == "failed"]
    assert failed["error"] == "assert 1 == 2"
    assert "test_fails" in failed["text"]
    assert part["tables"]["tests"] == {
        "passed": {"found": "4"},
        "failed": {"found": "1: test_some.py::test_fails"},
        "skipped": {"found": "1"},
        "without a result": {"found": "1: test_some.py::test_ends_its_process"},
    }


def test_a_file_that_cannot_be_imported_does_not_stop_the_others(outcomes: Any, results: Any) -> None:
    found = outcomes({"test_bad.py": "import no_such_module", "test_good.py": TESTS.replace("os._exit(3)", "pass")})
    assert found["test_bad.py"] == "failed"
    assert found["test_good.py::test_passes"] == "passed"
    errors = {own.get("error") for own in results.read()["parts"]["tests"]["each"].values()}
    assert "ModuleNotFoundError: No module named 'no_such_module'" in errors


def test_processes_that_collect_nothing_are_no_endless_loop(outcomes: Any) -> None:
    assert outcomes({"conftest.py": "raise SystemExit(3)", "test_some.py": TESTS}) == {}


def test_a_test_that_hangs_loses_its_result(outcomes: Any, results: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after it is run by the next process. Time passes while it runs, and at no other time."""
    from parts import tests
    from pytest_results import RUNNING, outcomes_of

    def hangs() -> bool:
        own = outcomes_of(results.read())
        return any("ends" in name and each["outcome"] == RUNNING for name, each in own.items())

    monkeypatch.setattr(tests, "monotonic", Clock(passes=hangs).monotonic)
    code = TESTS.replace("os._exit(3)", f"time.sleep({FOREVER})")
    found = outcomes({"test_some.py": code}, patience=0.25)
    assert found["test_some.py::test_ends_its_process"] == "without a result"
    assert found["test_some.py::test_comes_after[2]"] == "passed"
