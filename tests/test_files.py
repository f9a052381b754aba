"""A file or a folder takes the place of whatever has the name."""

from pathlib import Path

import pytest

from trainyard.files import DISK_PATIENCE, despite_absence, put, remove, returned


def make(path: Path, kind: str, content: str) -> None:
    if kind == "folder":
        path.mkdir()
        (path / "inside").write_text(content)
    elif kind == "file":
        path.write_text(content)


def content_of(path: Path) -> str:
    return (path / "inside" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("there", ["nothing", "file", "folder"])
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("killed", [False, True])
def test_it_takes_the_place(tmp_path: Path, kind: str, there: str, killed: bool) -> None:
    make(tmp_path / "new.tmp", kind, "new")
    make(tmp_path / "best.pt", there, "old")
    if killed:  # a process died between the two renames of an earlier call
        make(tmp_path / ".best.pt.old", "folder", "older")
    put(tmp_path / "new.tmp", tmp_path / "best.pt")
    assert content_of(tmp_path / "best.pt") == "new"
    assert not (tmp_path / "new.tmp").exists()
    if there == "folder":
        assert not (tmp_path / ".best.pt.old").exists()


def test_what_is_not_there_is_removed_without_an_error(tmp_path: Path) -> None:
    remove(tmp_path / "absent")
    make(tmp_path / "folder", "folder", "x")
    remove(tmp_path / "folder")
    make(tmp_path / "file", "file", "x")
    remove(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_what_is_written_waits_for_a_folder_that_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, away = tmp_path / "folder", tmp_path / "away"
    folder.mkdir()
    folder.rename(away)
    with pytest.raises(FileNotFoundError):
        despite_absence(folder, lambda: (folder / "file").write_text("x"))  # not on a network disk
    assert not returned(folder)
    monkeypatch.setenv(DISK_PATIENCE, "60")
    monkeypatch.setattr("trainyard.files.time.sleep", lambda _: away.rename(folder))
    assert despite_absence(folder, lambda: (folder / "file").write_text("x")) == 1
    assert (folder / "file").read_text() == "x"
    with pytest.raises(FileNotFoundError):
        despite_absence(folder, lambda: (folder / "no" / "file").write_text("x"))
