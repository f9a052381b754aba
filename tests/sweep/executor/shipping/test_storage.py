"""Storages: whole files under a URL of fsspec, and what is refused before anything starts."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from trainyard.errors import ConfigError
from trainyard.sweep.executor.shipping.storage import Storage, StorageError
from trainyard.sweep.ray_settings import RaySettings


@pytest.fixture(params=["file", "memory"])
def storage(request: Any, tmp_path: Path) -> Any:
    made = Storage(f"file://{tmp_path}/store/" if request.param == "file" else f"memory://{secrets.token_hex(8)}")
    yield made
    made.clear()


def test_files_are_found_read_replaced_and_removed(storage: Storage, tmp_path: Path) -> None:
    storage.write("3/a", b"first")
    (tmp_path / "b").write_bytes(b"second")
    storage.put(tmp_path / "b", "3/inner/b")
    before = storage.files("3")
    assert sorted(before) == ["3/a", "3/inner/b"]
    assert before["3/a"] == storage.version("3/a")
    assert (storage.read("3/a", 2), storage.read("3/a", 5)) == (b"rst", b"")
    storage.write("3/a", b"third")
    assert storage.files("3")["3/a"] != before["3/a"]
    storage.get("3/a", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"third"
    storage.remove("3/a")
    storage.remove("3/a")
    assert list(storage.files("3")) == ["3/inner/b"]
    assert storage.files("4") == {}
    storage.clear()
    storage.clear()


def test_a_sweep_is_seen_by_its_mark(storage: Storage) -> None:
    below = storage.below("sweep-1")
    with pytest.raises(StorageError, match="sweep-1 does not contain this sweep"):
        below.marked()
    below.mark({"fence": 2})
    assert below.marked() == {"fence": 2}


def test_a_check_leaves_nothing(storage: Storage) -> None:
    storage.check()
    assert storage.files("") == {}


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s4://bucket/folder", "fsspec does not support s4://."),
        ("stfp://host/folder", "fsspec does not support stfp://. Did you mean sftp://?"),
        ("/mnt/disk", "The URL does not start with a protocol such as s3://."),
        ("dropbox://folder", "Install this package on the nodes too."),
        ("http://127.0.0.1:9/folder", "A test file could not be written, read and removed: "),
    ],
)
def test_what_cannot_be_a_storage(url: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        RaySettings(storage=url).files(tmp_path)
    assert str(error.value).startswith(f"storage: '{url}' is invalid. Expected a URL that fsspec writes to")
    assert told in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError,
        match=r"storage: 'file://.* A test file could not be written, .*: (Not a directory|File exists): \S*/file\S*\.",
    ):
        RaySettings(storage=f"file://{tmp_path}/file/inner").files(tmp_path)


def test_memory_is_of_one_process(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory:// is visible only in this process"):
        RaySettings(storage="memory://sweeps").files(tmp_path)


def test_files_as_transport_need_a_shared_disk() -> None:
    with pytest.raises(ConfigError, match="Expected tcp, because"):
        RaySettings(storage="file:///store", transport="files")
