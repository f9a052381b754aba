"""Mirrors of a folder in a storage in memory: what has changed on one side comes to the other, and nothing else."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainyard.sweep.executor.shipping.mirror import Mirror
from trainyard.sweep.executor.shipping.storage import Storage


@pytest.fixture
def storage() -> Any:
    made = Storage(f"memory://{secrets.token_hex(8)}")
    yield made
    made.clear()


@pytest.fixture
def sides(storage: Storage, tmp_path: Path) -> tuple[Path, Path, Mirror, Mirror]:
    """A node's folder and the home of its files, and a mirror of job 3 in each."""
    node, home = tmp_path / "node", tmp_path / "home"
    for each in (node, home):
        (each / "3").mkdir(parents=True)
    return node, home, Mirror(storage, node, "3", {}), Mirror(storage, home, "3", {})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(path: Path, content: bytes) -> None:
    """Write a file as trainings do: under another name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    """The arguments of each call of a method of storages from now on."""
    made: list[Any] = []
    before: Callable[..., Any] = getattr(Storage, name)

    def noted(self: Storage, *arguments: Any) -> Any:
        made.append(arguments)
        return before(self, *arguments)

    monkeypatch.setattr(Storage, name, noted)
    return made


_NAMES = st.sampled_from(["a", "checkpoints/b.pt", "checkpoints/last.json", ".hydra/c.yaml"])
_CHANGES = st.lists(st.tuples(_NAMES, st.one_of(st.none(), st.binary(max_size=3))), max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_CHANGES, max_size=5))
def test_home_has_what_the_node_has(tmp_path: Path, rounds: list[list[tuple[str, bytes | None]]]) -> None:
    own = tmp_path / secrets.token_hex(8)
    node, home, storage = own / "node", own / "home", Storage(f"memory://{own.name}")
    here, there = Mirror(storage, node, "3", {}), Mirror(storage, home, "3", {})
    for changes in rounds:
        for name, content in changes:
            if content is None:
                (node / "3" / name).unlink(missing_ok=True)
            else:
                put(node / "3" / name, content)
        here.push()
        there.pull()
        assert contents(home) == contents(node)
    elsewhere = Mirror(storage, own / "elsewhere", "3", {})
    elsewhere.pull()
    assert contents(own / "elsewhere") == contents(node)
    storage.clear()


def test_nothing_is_carried_twice(sides: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node, _, here, there = sides
    put(node / "3" / "best.pt", b"weights")
    here.push()
    there.pull()
    sent, fetched = calls(monkeypatch, "put"), calls(monkeypatch, "get")
    here.push()
    there.pull()
    assert (sent, fetched) == ([], [])


def test_of_a_journal_the_rest_is_fetched_by_whole_lines(sides: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node, home, here, there = sides
    journal = node / "3" / "metrics.jsonl"
    journal.write_bytes(b'{"a": 1}\n{"b"')
    here.push()
    there.pull()
    assert (home / "3" / "metrics.jsonl").read_bytes() == b'{"a": 1}\n'
    journal.write_bytes(b'{"a": 1}\n{"c": 2}\n')
    here.push()
    read, fetched = calls(monkeypatch, "read"), calls(monkeypatch, "get")
    there.pull()
    assert (home / "3" / "metrics.jsonl").read_bytes() == journal.read_bytes()
    assert (read, fetched) == ([("3/metrics.jsonl", 9)], [])


def test_what_names_others_is_carried_after_them(sides: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node, _, here, there = sides
    for name in ("run.json", "checkpoints/last.json", "checkpoints/epoch_0001.pt", "z"):
        put(node / "3" / name, b"")
    sent, fetched = calls(monkeypatch, "put"), calls(monkeypatch, "get")
    here.push()
    there.pull()
    for names in ([each[1] for each in sent], [each[0] for each in fetched]):
        assert sorted(names[-2:]) == ["3/checkpoints/last.json", "3/run.json"]


def test_hidden_files_and_unfinished_ones_stay(storage: Storage, sides: Any) -> None:
    node, _, here, _ = sides
    (node / "3" / ".epoch_0001.pt.tmp").write_bytes(b"half")
    here.push()
    storage._fs.pipe_file(f"{storage._root}/3/x.0.part", b"half")
    assert storage.files("3") == {}


def test_what_was_trained_elsewhere_meanwhile_is_sent(sides: Any) -> None:
    """Home is newer where its file has changed since it came; otherwise the storage is."""
    node, home, here, there = sides
    put(node / "3" / "last", b"1")
    put(node / "3" / "other", b"1")
    here.push()
    there.pull()
    put(home / "3" / "last", b"2, by the local launcher")
    put(node / "3" / "other", b"3, after the head was killed")
    here.push()
    there.meet()
    again = Mirror(there._storage, node.parent / "again", "3", {})
    again.pull()
    assert contents(node.parent / "again") == contents(home)
    assert (home / "3" / "last").read_bytes() == b"2, by the local launcher"
    assert (home / "3" / "other").read_bytes() == b"3, after the head was killed"


def test_records_of_hydra_name_the_folders_of_the_head(storage: Storage, tmp_path: Path) -> None:
    put(tmp_path / "3" / ".hydra" / "hydra.yaml", f"dir: {tmp_path}/3\n".encode())
    Mirror(storage, tmp_path, "3", {}, {str(tmp_path): "/home/me/sweep"}).push()
    assert storage.read("3/.hydra/hydra.yaml") == b"dir: /home/me/sweep/3\n"


def test_a_folder_that_is_removed_here_stays_there(storage: Storage, sides: Any) -> None:
    """A node makes room after a job has ended."""
    node, _, here, _ = sides
    put(node / "3" / "best.pt", b"weights")
    here.push()
    here.forget()
    here.push()
    assert not (node / "3").exists()
    assert list(storage.files("3")) == ["3/best.pt"]
