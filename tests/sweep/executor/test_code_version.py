"""Version of the code: agents that begin after a commit run the head's code if its files are the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from trainyard.sweep.executor.code_version import CodeVersion


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a commit, as the current folder."""
    monkeypatch.chdir(tmp_path)
    for variable in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(variable, raising=False)
    git("init", "-q")
    (tmp_path / "nets.py").write_text("width = 1\n")
    commit()
    return tmp_path


def git(*arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)


def commit() -> None:
    git("add", "-A")
    git("commit", "-q", "-m", "change")


def test_a_commit_that_leaves_the_python_files_as_they_are_is_no_other_code(project: Path) -> None:
    """The one of what was not committed when the head began, and one of other files."""
    (project / "nets.py").write_text("width = 2\n")
    (project / "new.py").write_text("")
    head = CodeVersion.now()
    (project / "notes.md").write_text("notes")
    commit()
    agent = CodeVersion.now()
    assert agent.told != head.told
    assert agent.matches(head)


def test_a_commit_of_other_python_files_is_other_code(project: Path) -> None:
    head = CodeVersion.now()
    (project / "nets.py").write_text("width = 2\n")
    assert CodeVersion.now().matches(head)  # not committed: not seen
    commit()
    assert not CodeVersion.now().matches(head)
