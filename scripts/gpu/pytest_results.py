"""Pytest plugin that writes the result of each test to the JSON file immediately: `-p pytest_results --results FILE`.

`--share 1/4` runs the second of four shares of the selected tests. Tests that already have a result in the file are
skipped, so that another process can continue a share whose process has ended. A process whose CUDA is in an error state
runs no more tests.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from results import Content, Results

WAITING, RUNNING, WITHOUT = "waiting", "running", "without a result"
Outcomes = dict[str, dict[str, Any]]


def outcomes_of(content: Content) -> Outcomes:
    """Return the results of the tests, by their ids."""
    found: Outcomes = content.setdefault("parts", {}).setdefault("tests", {}).setdefault("each", {})
    return found


def count(content: Content) -> None:
    """Update the table of the tests."""
    outcomes = outcomes_of(content)
    rows = content["parts"]["tests"].setdefault("tables", {}).setdefault("tests", {})
    for row in ("passed", "failed", "skipped", WITHOUT):
        names = [name.rpartition("/")[2] for name, own in outcomes.items() if own["outcome"] == row]
        listed = f": {', '.join(names)}" if names and row in ("failed", WITHOUT) else ""
        rows[row] = {"found": f"{len(names)}{listed}"}


class Plugin:
    """Writes the results of one share."""

    def __init__(self, results: Results, share: int, shares: int) -> None:
        self.results = results
        self.share = share
        self.shares = shares

    @pytest.hookimpl(trylast=True)  # after those that choose by marks
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        own = items[self.share :: self.shares]
        known = outcomes_of(self.results.read())
        left = [item for item in own if known.get(item.nodeid, {}).get("outcome", WAITING) == WAITING]
        config.hook.pytest_deselected(items=[item for item in items if item not in left])
        items[:] = left

        def change(content: Content) -> None:
            for item in left:
                outcomes_of(content)[item.nodeid] = {"outcome": WAITING, "share": self.share}
            count(content)

        self.results.change(change)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._note(report.nodeid, "failed", error=_last_line(report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._note(nodeid, RUNNING)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._note(report.nodeid, "failed", error=_last_line(report), when=report.when, text=report.longreprtext)
        elif report.when == "call" or report.skipped:
            self._note(report.nodeid, report.outcome, seconds=round(report.duration, 2))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        result = yield
        if is_broken():
            item.session.shouldstop = "CUDA is in an error state"
        return result

    def _note(self, nodeid: str, outcome: str, **values: Any) -> None:
        def change(content: Content) -> None:
            outcomes_of(content)[nodeid] = {"outcome": outcome, "share": self.share, **values}
            count(content)

        self.results.change(change)


def is_broken() -> bool:
    """Return whether an error on the device prevents this process from using CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _last_line(report: pytest.CollectReport | pytest.TestReport) -> str:
    lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return lines[0].removeprefix("E ").strip()[:300] if lines else report.longreprtext.strip()[-300:]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, required=True, help="the JSON file")
    parser.addoption("--share", default="0/1", help="share of the tests to run, as INDEX/COUNT")


def pytest_configure(config: pytest.Config) -> None:
    share, shares = map(int, config.getoption("share").split("/"))
    config.pluginmanager.register(Plugin(Results(config.getoption("results")), share, shares), "results-of-the-check")
