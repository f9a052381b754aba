"""SQLite databases of MLflow, which are created completely or not at all, and opened so that readers do not wait."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from trainyard import temporary


def client(uri: str, database: Path) -> MlflowClient:
    """Open a database, which is created if it is missing.

    Args:
        uri: the URI of the database, for MLflow.
        database: the file of the database.

    Raises:
        Exception: any error of SQLite or MLflow; a later attempt may succeed.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    _commit_quickly()
    # MLflow puts the artifacts of a new database into `mlruns` in the current folder; that must be the database's.
    with _alone_in(database.parent):
        prefix = f".{database.name}.new-"
        temporary.remove_left(database.parent, prefix)
        if not database.exists():
            _make(uri, database, database.with_name(temporary.marked(prefix)))
        try:
            execute(database, "PRAGMA journal_mode=WAL")  # readers and a writer don't wait for each other
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise  # this error is clear; MLflow would retry for minutes
        return MlflowClient(uri)


def execute(database: Path, pragma: str) -> None:
    with contextlib.closing(sqlite3.connect(database, timeout=1.0)) as connection:
        connection.execute(pragma)


def _make(uri: str, database: Path, new: Path) -> None:
    """Create a database in a separate folder, and move it into place once it is complete.

    MLflow creates its tables in about a hundred steps, and cannot continue from one of them: a process that is killed
    meanwhile, or a full disk, would leave an unusable database. If another program has created the database in the
    meantime, that database is kept.
    """
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new.mkdir()
    made = new / database.name
    try:
        made.touch()
        execute(made, "PRAGMA journal_mode=WAL")  # faster, too
        store = SqlAlchemyStore(f"{uri.partition(':///')[0]}:///{made}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)  # type: ignore[no-untyped-call]
        store.engine.dispose()
        execute(made, "PRAGMA wal_checkpoint(TRUNCATE)")
        with made.open("rb") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            _link(made, database)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _link(made: Path, database: Path) -> None:
    try:
        database.hardlink_to(made)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        made.rename(database)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Lock the folder against other shippers, because two processes cannot create the tables of a new database
    together."""
    lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.chdir(folder):
            yield
    finally:
        os.close(lock)


@functools.cache
def _commit_quickly() -> None:
    """Make SQLAlchemy's SQLite connections wait for the disk only at checkpoints, not at commits.

    A commit then survives the end of the process, but perhaps not a power failure.
    """
    from sqlalchemy import Engine, event

    def settings(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint=4000")  # pages of 4 KB

    event.listen(Engine, "connect", settings)
