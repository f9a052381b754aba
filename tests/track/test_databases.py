"""A new SQLite database is whole, or it is not there: whenever its making is cut off, the next run makes it."""

import resource
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked
import pytest
from mlflow import MlflowClient
from sqlalchemy import Engine, event
from sqlalchemy.exc import SQLAlchemyError
from waiting import LIMIT

from trainyard.track.shipper import databases

KILLED = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import Engine, event
from trainyard.track.shipper import databases
left = [500]
def count(*_):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
event.listen(Engine, "before_cursor_execute", count)
databases.client("sqlite:///" + sys.argv[1], Path(sys.argv[1]))
"""


def opened(database: Path) -> MlflowClient:
    return databases.client(f"sqlite:///{database}", database)


@contextmanager
def at_each_statement(function: Callable[[int], None]) -> Iterator[None]:
    count = 0

    def seen(*_: Any) -> None:
        nonlocal count
        count += 1
        function(count)

    event.listen(Engine, "before_cursor_execute", seen)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", seen)


def test_at_no_moment_is_there_a_part_of_it(tmp_path: Path, environment: dict[str, str]) -> None:
    """What a kill leaves is what there is at that moment; and after a kill, the next one makes it and tidies up."""
    database = tmp_path / "folder" / "mlflow.db"
    done = forked.run([sys.executable, "-c", KILLED, str(database)], cwd=tmp_path, env=environment, timeout=LIMIT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = database.parent.iterdir()
    assert left.name.startswith(".mlflow.db.new-")
    found: list[tuple[int, Any]] = []

    def look(count: int) -> None:
        if database.exists() and not found:
            with sqlite3.connect(database) as connection:
                found.append((count, connection.execute("SELECT version_num FROM alembic_version").fetchone()))

    with at_each_statement(look):
        client = opened(database)
    assert found[0][0] > 1000
    assert [version for _, version in found] == list(_versions(database))
    assert client.create_experiment("first")
    assert {entry.name.partition("-")[0] for entry in database.parent.iterdir()} <= {
        "mlflow.db",
        "mlflow.db.wal",
        "mlflow.db.shm",
    }
    assert client.get_experiment("0").artifact_location == str(database.parent / "mlruns" / "0")


def _versions(database: Path) -> Iterator[Any]:
    with sqlite3.connect(database) as connection:
        yield from connection.execute("SELECT version_num FROM alembic_version")


def test_a_full_disk(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises((sqlite3.Error, SQLAlchemyError), match="disk"):
            opened(tmp_path / "mlflow.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_another_program_was_faster(tmp_path: Path, uri: str) -> None:
    """`mlflow ui`, say, has made the database while it was being made here: that one stays."""
    theirs = tmp_path / "mlflow.db"
    MlflowClient(uri).create_experiment("theirs")
    databases.execute(theirs, "PRAGMA wal_checkpoint(TRUNCATE)")
    database = tmp_path / "folder" / "mlflow.db"

    def make(count: int) -> None:
        if count == 50:
            shutil.copy(theirs, database)

    with at_each_statement(make):
        client = opened(database)
    assert client.get_experiment_by_name("theirs") is not None
    assert not list(database.parent.glob(".*"))
