"""Code that is sent to nodes: which folders, which files, how much."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from trainyard.errors import TrainyardError
from trainyard.sweep.executor.shipping import code
from trainyard.sweep.executor.shipping.code import code_folders, pack


def files(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as file:
        return sorted(name for name in file.namelist() if not name.endswith("/"))


def project(folder: Path) -> Path:
    for name in ("train.py", "conf/a.yaml", "src/x.py", "src/__pycache__/x.pyc", "multirun/1/big", ".env", "env/b.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "env" / "pyvenv.cfg").touch()
    return folder


def test_folders_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    python = [str(Path(sys.prefix) / "lib"), str(tmp_path / "x" / "site-packages"), str(tmp_path / "missing")]
    assert code_folders([str(tmp_path / "src"), "", str(tmp_path), *python]) == [str(tmp_path)]
    assert code_folders([str(tmp_path / "src"), str(tmp_path / "conf")]) == [
        str(tmp_path / "src"),
        str(tmp_path / "conf"),
    ]


def test_what_is_packed(tmp_path: Path) -> None:
    folder = project(tmp_path / "project")
    pack([str(folder), str(folder / "conf")], tmp_path / "code.zip")
    assert files(tmp_path / "code.zip") == ["0/conf/a.yaml", "0/src/x.py", "0/train.py", "1/a.yaml"]
    pack([str(folder)], tmp_path / "less.zip", [folder / "src"])
    assert files(tmp_path / "less.zip") == ["0/conf/a.yaml", "0/train.py"]


def test_in_a_repository_that_is_what_git_does_not_ignore(tmp_path: Path) -> None:
    folder = project(tmp_path / "project")
    (folder / ".gitignore").write_text("env\n.env\n")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    pack([str(folder)], tmp_path / "code.zip")
    assert files(tmp_path / "code.zip") == ["0/.gitignore", "0/conf/a.yaml", "0/src/x.py", "0/train.py"]


def test_the_same_code_makes_the_same_archive(tmp_path: Path) -> None:
    folder = project(tmp_path / "project")
    pack([str(folder)], tmp_path / "one.zip")
    (folder / "train.py").touch()
    pack([str(folder)], tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "LIMIT", 10)
    with pytest.raises(TrainyardError, match="are larger than 0 MiB in total, not counting files that git ignores"):
        pack([str(project(tmp_path / "project"))], tmp_path / "code.zip")
