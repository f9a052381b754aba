"""Shipping state of a run: `shipped.json` in its directory, and the messages about it."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainyard.quoting import shell_path
from trainyard.redaction import redact
from trainyard.track import journal
from trainyard.track.run_info import RunInfo, write_json
from trainyard.track.shipper.names import KnownNames, renamed
from trainyard.track.uri import sqlite_file

FILE = "shipped.json"
LOCK = ".shipper.lock"
LOG = "shipper.log"
TRAINING = "workflowType=machine_learning"
"""Query of MLflow's pages that shows runs as trainings, not as runs of language models."""
_UI = "http://127.0.0.1:5000"  # the default address of `mlflow ui`
_TAIL = 1024  # bytes
EXIT_STATUS = (0, 3, 4)
"""Exit codes of the shipper: all is shipped, something is not shipped, or MLflow did not respond in time; any other
code is a crash."""
SYNC = "`trainyard sync` uploads the missing records"
"""Next step for the user after a full disk in the shipper."""
TRUST = "trainyard sync --trust"
"""Command for a directory that is not recognized as the user's own; without --trust, it would upload nothing more."""
_AGAIN = f"{journal.FILE} was truncated or replaced after the upload. All records are uploaded again."


@dataclass
class Shipped:
    """State of one run in one MLflow store.

    Args:
        run_id, experiment_id: the IDs in MLflow.
        offset: the number of bytes of the journal whose metrics, params and tags the store has.
        tail: a checksum of the last of these bytes, by which a truncated or replaced journal is recognized.
        uploads: the uploads that the journal names up to this offset, and that are not done yet: name → offset of the
            record.
        status: the last status in the journal up to this offset.
        sent_status: the last status that was sent to the store.
        time: the time of the last record up to this offset, in Unix seconds.
        error: the reason why the last attempt failed; None if it succeeded.
        notes: records that were skipped permanently, with the reasons.
        names: for each kind of name, the name in MLflow of each name of the run.
    """

    run_id: str | None = None
    experiment_id: str | None = None
    offset: int = 0
    tail: int = 0
    uploads: dict[str, int] = field(default_factory=dict)
    status: str = "RUNNING"
    sent_status: str | None = None
    time: float | None = None
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    names: KnownNames = field(default_factory=dict)

    @classmethod
    def load(cls, work_dir: Path, uri: str) -> Shipped:
        """Load the state from `work_dir`; return a new state if the store has nothing of the run yet, or if the file is
        unreadable."""
        try:
            state = cls(**_read(work_dir)[redact(uri)])
        except (KeyError, TypeError):
            return cls()
        state.check_journal(work_dir / journal.FILE)
        return state

    def check_journal(self, path: Path) -> bool:
        """Start over if the journal is not the one that was shipped; return whether it is the same."""
        if self.offset == 0 or checksum_before(path, self.offset) == self.tail:
            return True
        self.offset, self.uploads, self.notes = 0, {}, [*self.notes, _AGAIN]
        return False

    def shipped_to(self, path: Path, offset: int) -> None:
        """Record that the store has the journal up to `offset`."""
        self.offset, self.tail = offset, checksum_before(path, offset)

    def save(self, work_dir: Path, uri: str) -> None:
        stores = _read(work_dir)
        stores[redact(uri)] = dataclasses.asdict(self)
        write_json(work_dir / FILE, stores, SYNC)


def checksum_before(path: Path, end: int) -> int:
    """Return a checksum of the bytes of a file before `end`, of a few lines at most; 0 for a missing file."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(0, end - _TAIL))
        return zlib.crc32(file.read(end - file.tell()))
    return 0


def _read(work_dir: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        stores = json.loads((work_dir / FILE).read_bytes())
        if isinstance(stores, dict):
            return stores
    return {}


class ShipperLock:
    """Lock of the one process that ships a run; it is released when that process ends. The file contains its number.

    Attributes:
        first: whether the lock was never acquired before, so that its file did not exist.
    """

    def __init__(self, work_dir: Path) -> None:
        self._path = work_dir / LOCK
        self._fd = -1
        self.first = False

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def acquire(self) -> bool:
        if self.held:
            return True
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            fd = os.open(self._path, flags | os.O_EXCL, 0o666)
            self.first = True
        except FileExistsError:
            fd = os.open(self._path, flags, 0o666)
            self.first = False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError:
            pass  # a file system without locks: other processes cannot be excluded
        with suppress(OSError):  # a full disk
            os.ftruncate(fd, 0)
            os.write(fd, str(os.getpid()).encode())
        self._fd = fd
        return True

    def release(self) -> None:
        if self.held:
            os.close(self._fd)
            self._fd = -1


def shipping_process(work_dir: Path) -> int | None:
    """Return the number of the process that ships a run; None if there is none, or if it is unknown."""
    with suppress(OSError, ValueError), (work_dir / LOCK).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read())
    return None


@dataclass(frozen=True)
class RunShipment:
    """Result of shipping one run's records.

    Args:
        shipped, unshipped: the numbers of journal records in the store, and of missing records (uploads count as
            records).
        error: the reason for the missing records.
        notes: records that were skipped permanently, with the reasons.
        renamed: names that would be equal to other names under MLflow's rules, and their names in MLflow.
    """

    work_dir: Path
    name: str
    uri: str | None
    experiment_id: str | None
    run_id: str | None
    shipped: int
    unshipped: int
    error: str | None
    notes: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return self.run_id is not None and self.unshipped == 0 and self.error is None

    @property
    def where(self) -> str:
        """Instruction for viewing the run."""
        if self.uri is None:
            return ""
        if self.uri.startswith(("http://", "https://")):
            page = f"{self.uri}/#/experiments/{self.experiment_id}/runs/{self.run_id}?{TRAINING}"
            return page if self.run_id else self.uri
        if file := sqlite_file(self.uri):
            with suppress(ValueError):
                file = file.relative_to(Path.cwd())
            return f"mlflow ui --backend-store-uri {shell_path(f'sqlite:///{file}')}"
        return self.uri

    @property
    def page(self) -> str:
        """Address of MLflow's page with the runs of the experiment; empty if unknown."""
        if self.experiment_id is None or self.uri is None:
            return ""
        server = _server(self.uri)
        return server and f"{server}/#/experiments/{self.experiment_id}/runs?{TRAINING}"

    def __str__(self) -> str:
        text = f"{self.name} ({self.work_dir}): {_records(self.shipped)} uploaded"
        if self.unshipped:
            text += f", {self.unshipped} not uploaded"
        if self.error:
            text += f". {self.error}"
        return "\n  ".join([text, *(_line("skipped", note) for note in self.notes), *self.renamed])


@dataclass(frozen=True)
class Shipment:
    """Result of shipping a command's runs; `str(shipment)` is a message, which is empty if there is nothing to report.

    Args:
        runs: one result per run.
        running: the shipper continues in the background.
        error: a local error: the shipper failed, or a run's directory no longer exists.
    """

    runs: tuple[RunShipment, ...] = ()
    running: bool = False
    error: str | None = None

    @property
    def complete(self) -> bool:
        return self.error is None and all(run.complete for run in self.runs)

    @property
    def arrived(self) -> str:
        """The runs of this command that are complete in MLflow, with instructions to view them; empty if none is."""
        if not self.runs or not self.runs[0].where or self.runs[0].run_id is None:
            return ""
        own, *others = self.runs  # a sweep's own, and those of its jobs
        if not others:
            return f"run {own.name!r}; {own.where}{self._then}"
        there = sum(run.complete for run in others)
        count = f"{there} of {len(others)}" if there < len(others) else str(there)
        return f"{count} run{'s' * (len(others) != 1)} uploaded below {own.name!r}; {own.where}{self._then}"

    @property
    def _then(self) -> str:
        page = self.runs[0].page
        return f"\n        all runs: {page}" if page else ""

    def __str__(self) -> str:
        lines = [f"{run.name}: {_line('not uploaded to MLflow', note)}" for run in self.runs for note in run.notes]
        lines += dict.fromkeys(f"MLflow: {text}" for run in self.runs for text in run.renamed)  # once for a sweep
        missing = [run for run in self.runs if not run.complete]
        if not missing:
            return "\n".join([*lines, *([self.error] if self.error else [])])
        records = sum(run.unshipped for run in missing)
        what = f"run {missing[0].name}" if len(missing) == 1 else f"{len(missing)} runs"
        folders = [str(run.work_dir) for run in missing]
        reason = self.error or next((run.error for run in missing if run.error), None)
        state = f"{_records(records)} of {what} {'is' if records == 1 else 'are'} not in MLflow ({missing[0].uri}) yet."
        if not records:  # but an upload failed, such as that of the status
            be = "is" if len(missing) == 1 else "are"
            state = f"{what[:1].upper()}{what[1:]} {be} not complete in MLflow ({missing[0].uri})."
        lines.append(f"{state} {reason}" if reason else state)
        if self.running:
            lines.append("The records are being uploaded in the background.")
        place = shell_path(folders[0] if len(folders) == 1 else os.path.commonpath(folders))
        advice = "" if reason and TRUST in reason else f" To upload them later: trainyard sync {place}"
        contain = "journal contains" if len(missing) == 1 else "journals contain"
        lines.append(f"The {contain} all records.{advice}")
        return "\n".join(lines)


def _records(count: int) -> str:
    return f"{count} record{'s' * (count != 1)}"


def _line(what: str, note: str) -> str:
    """Return a note for users; all notes except one name records that were skipped."""
    return note if note == _AGAIN else f"{what}: {note}"


def run_page(work_dir: Path, uri: str) -> str:
    """Return the address of a run's page in MLflow; empty if the store does not have it yet, or has no pages.

    Args:
        work_dir: the run's directory.
        uri: the store.
    """
    state, server = Shipped.load(work_dir, uri), _server(uri)
    if state.run_id is None or not server:
        return ""
    return f"{server}/#/experiments/{state.experiment_id}/runs/{state.run_id}?{TRAINING}"


def _server(uri: str) -> str:
    """Return the address of a store's pages, without credentials; empty if it has none."""
    if uri.startswith(("http://", "https://")):
        scheme, _, rest = uri.partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return _UI if sqlite_file(uri) else ""


def summary(work_dir: Path, uri: str | None = None) -> RunShipment:
    """Return how far the run in `work_dir` has been shipped to `uri`, by default the one in its `run.json`."""
    info = RunInfo.read(work_dir)
    uri = redact(uri) if uri else info.uri
    state = Shipped.load(work_dir, uri) if uri else Shipped()
    path = work_dir / journal.FILE
    left = sum(1 for _ in journal.read(path, state.offset))
    shipped = path.read_bytes()[: state.offset].count(b"\n") if path.exists() else 0
    return RunShipment(
        work_dir=work_dir,
        name=info.name,
        uri=uri,
        experiment_id=state.experiment_id,
        run_id=state.run_id,
        shipped=shipped - len(state.uploads),
        unshipped=left + len(state.uploads),
        error=state.error,
        notes=tuple(state.notes),
        renamed=tuple(renamed(state.names)),
    )
