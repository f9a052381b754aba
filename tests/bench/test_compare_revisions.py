"""`scripts/bench/compare.py` with two revisions of git, on a small project with a case of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
FILES = ("compare", "revisions", "environment", "measure", "report", "run", "plot")
CASE = '''"""What it is."""

from measure import Comparison, Table, take_turns_here


def tables(session):
    sides = {{"trainyard": lambda: {own!r}, "plain PyTorch": lambda: {peer!r}}}
    values, failed = take_turns_here(session, sides)
    yield Table("Step", "µs", values, failed, [Comparison("trainyard", "plain PyTorch")])
'''
SLOW = '''"""What it is."""

import time
from pathlib import Path


def tables(session):
    Path({marker!r}).touch()
    time.sleep(600)
    yield
'''


class Project:
    """Git repository with the scripts of the benchmarks and cases written by a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bench = folder / "scripts" / "bench"
        (self.bench / "cases").mkdir(parents=True)
        (folder / "src").mkdir()
        for name in FILES:
            shutil.copy(BENCH / f"{name}.py", self.bench)
        shutil.copy(BENCH / "requirements.txt", self.bench)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=A User", "-c", "user.email=user@example.com", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(self.folder), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def commit(self, tag: str, **cases: str) -> None:
        for name, text in cases.items():
            (self.bench / "cases" / f"{name}.py").write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", tag)
        self.git("tag", tag)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(self.bench / "compare.py"), *arguments, "--here"]

    def compare(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit status, the output and the errors of the command."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, check=False, env=self.environment
        )
        return done.returncode, done.stdout, done.stderr

    @property
    def environment(self) -> dict[str, str]:
        scratch = self.folder.parent / "scratch"
        scratch.mkdir(exist_ok=True)
        return os.environ | {"TMPDIR": str(scratch)}

    def left(self) -> list[str]:
        """Return the names of temporary files, and of worktrees other than the project's own."""
        worktrees = self.git("worktree", "list", "--porcelain").count("worktree ") - 1
        return [*(file.name for file in (self.folder.parent / "scratch").iterdir()), *["worktree"] * worktrees]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project")
    made.commit("first", step=CASE.format(own=100.0, peer=200.0))
    made.commit("same", step=CASE.format(own=102.0, peer=400.0))
    made.commit("slower", step=CASE.format(own=120.0, peer=400.0), models=CASE.format(own=1.0, peer=1.0))
    return made


def test_figures_of_our_sides_are_compared(project: Project) -> None:
    """Each revision runs its own code; the peer, which takes twice the time in the second one, plays no role."""
    status, said, errors = project.compare("first", "slower", "--only", "step", "--rounds", "2")
    assert (status, errors) == (1, "")
    assert "round 2 of 2  step: new " in said
    assert "step: scripts/bench/cases/step.py changed between the revisions, so figures may differ" in said
    assert "Step\n  trainyard: 100 -> 120, +20.0%  (+20.0% to +20.0%)\n" in said
    assert said.endswith(
        "REGRESSION  Step: trainyard: 100 -> 120, +20.0%  (+20.0% to +20.0%)\n"
        "1 figures compared, 1 regressions over 5 %.\n"
    )
    assert project.left() == []
    status, said, _ = project.compare("first", "same", "--only", "step", "--rounds", "1")
    assert status == 0
    assert said.endswith("1 figures compared, 0 regressions over 5 %.\n")


def test_a_case_that_one_revision_lacks_is_skipped(project: Project) -> None:
    status, said, _ = project.compare("first", "slower", "--only", "models,data", "--rounds", "1")
    assert status == 2, "there is no file of the case data"
    status, said, _ = project.compare("first", "slower", "--only", "models", "--rounds", "1")
    assert status == 0
    assert said == ("models is skipped: first does not have this case.\n0 figures compared, 0 regressions over 5 %.\n")


def test_a_case_that_fails_in_the_new_revision_is_a_regression(project: Project) -> None:
    project.commit("broken", step="raise RuntimeError('no case')")
    status, said, _ = project.compare("same", "broken", "--only", "step", "--rounds", "1")
    assert status == 1
    assert "REGRESSION  step: the case failed: " in said
    assert "RuntimeError: no case" in said
    status, said, _ = project.compare("broken", "same", "--only", "step", "--rounds", "1")
    assert status == 0
    assert "step is not compared completely, because it failed in broken: " in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", "same"), "none: git knows no such revision here, and there is no such file\n"),
        (("same", "--", "--all"), "--all: git knows no such revision here, and there is no such file\n"),
        (("first", "same", "--only", "stepp"), "--only stepp: neither revision has this case\n"),
    ],
)
def test_errors_are_one_line(project: Project, arguments: tuple[str, ...], message: str) -> None:
    command = [*project.command()[:-1], "--here", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=project.environment)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert project.left() == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_worktrees_are_removed_after_an_interrupt(
    project: Project, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    marker = tmp_path / "marker"
    project.commit("slow", step=SLOW.format(marker=str(marker)))
    process = subprocess.Popen(
        project.command("slow", "slow", "--only", "step"),
        env=project.environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not marker.exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert project.left()
    send: Callable[[int, int], Any] = os.killpg if number == signal.SIGINT else os.kill  # Ctrl-C reaches the group
    send(process.pid, number)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (status, "")
    assert project.left() == []


def test_rounds_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A side that fails in one round has no figures, so that those of two revisions are of the same rounds."""
    monkeypatch.syspath_prepend(str(BENCH))
    from revisions import add

    def case(failed: dict[str, str], **values: list[float]) -> dict[str, Any]:
        return {"tables": [{"title": "Step", "values": values, "failed": failed}], "error": None}

    figures: dict[str, Any] = {"cases": {}}
    add(figures, "step", case({}, a=[1.0], b=[2.0]))
    add(figures, "step", case({"b": "no more"}, a=[3.0]))
    add(figures, "step", case({}, a=[5.0], b=[6.0]))
    table = figures["cases"]["step"]["tables"][0]
    assert table["values"] == {"a": [1.0, 3.0, 5.0]}
    assert table["failed"] == {"b": "no more"}


def test_our_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from measure import own_sides

    assert own_sides(["trainyard, one by one", "joblib, by hand", "trainyard"]) == [
        "trainyard, one by one",
        "trainyard",
    ]
    assert own_sides(["K = 1", "by hand"]) == ["K = 1"]
    assert own_sides(["0 metrics", "8 metrics"]) == ["0 metrics", "8 metrics"]
