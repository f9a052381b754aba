"""Shipping of one run from its journal to its store."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainyard.errors import TrainyardError
from trainyard.files import DiskFullError
from trainyard.redaction import redact
from trainyard.track import journal, own
from trainyard.track.lines import Record, encode
from trainyard.track.run_info import RunInfo
from trainyard.track.shipped import LOG, Shipped, ShipperLock
from trainyard.track.shipper.backoff import PATIENCE, Backoff
from trainyard.track.shipper.copies import Copies
from trainyard.track.shipper.held_back import HeldBack
from trainyard.track.shipper.logged_model import warm_model
from trainyard.track.shipper.model_records import EPOCH, of_evaluation, planned_model
from trainyard.track.shipper.names import Names
from trainyard.track.shipper.other_runs import AwaitedError, linked
from trainyard.track.shipper.registry import register
from trainyard.track.shipper.sanitize import describe, first_line
from trainyard.track.shipper.store import MAX_ITEMS, MESSAGE_TAG, RunLostError, Store, StoredRun, Stores
from trainyard.track.shipper.uploads import LeftOutError, MissingError

_FINAL = ("FINISHED", "FAILED", "KILLED")
_MODEL = "model"
_REGISTER = "register"
DIGEST_TAG = "data.digest"
"""Tag of a run with the digest of each of its data sets: `train=8fa6… val=e359…`."""
_MAX_RECORDS = 5000  # read into one batch
_MAX_NOTES = 20
_SAVE_EVERY = 1.0  # seconds, in a long step


class InUseError(Exception):
    """Another process is shipping this run."""


@dataclass
class _Batch:
    """The next records of a journal, about as many as fit into one request.

    Args:
        uploads: the uploads, each with its newest record and the offset at which the record starts.
        status: the last status; None if it is unchanged.
        quiet: whether the status came without a message.
        end: the offset at which the records end.
        time: the time of the last record.
    """

    metrics: list[tuple[str, float, float, int]] = field(default_factory=list)
    params: list[tuple[str, str]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, tuple[int, Record]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    status: str | None = None
    quiet: bool = False
    end: int = 0
    time: float = 0.0


class RunShipper:
    """Ships one run, from the position that `shipped.json` records.

    Metrics, params and tags are sent first, in the order of the journal. Uploads, which may be slow or fail separately,
    are recorded and follow, and the final status comes last. `shipped.json` is written at the end of a step: after a
    kill, some records are sent again, which changes nothing.

    Args:
        work_dir: the run's directory, with its `run.json`.
        stores: shared by the runs of a process.
        uri: the store to ship to; by default the one in `run.json`.
        experiment: the experiment in which the run is created; by default the one in `run.json`.
        search: search for the run in MLflow even if it was never shipped from this directory, which may be a copy.
        trust: run the code of its model and follow its links, even if the directory is not the user's own.

    Attributes:
        done: whether the trainer has ended, and everything is shipped.
        looked: the time at which the last step started, from `time.monotonic`.
        trying, uploading: the times at which to retry after a failure of this run.
        awaiting: the time at which to look again for another run to which this one refers.
        locking: the time at which to try again to lock the run, while another process is shipping it.

    Raises:
        TrainyardError: there is no run here, its `run.json` does not name the store in which it is tracked, or a
            directory from elsewhere contains links instead of files.
    """

    def __init__(
        self,
        work_dir: Path,
        stores: Stores,
        uri: str | None = None,
        *,
        experiment: str | None = None,
        search: bool = False,
        trust: bool = False,
    ) -> None:
        self.work_dir = work_dir
        self.info = RunInfo.read(work_dir)
        elsewhere = None if uri is None or redact(uri) == self.info.uri else uri
        self._held = None if trust or own.is_own(self.info, work_dir) else HeldBack(work_dir, elsewhere)
        if experiment is not None:
            self.info = replace(self.info, experiment=experiment, experiment_id=None)
        where = uri or self.info.uri
        if where is None:
            raise TrainyardError(
                f"{work_dir}: this run is not tracked. To upload the run, pass an MLflow URI with --uri."
            )
        self.uri = where
        self.done = False
        self.looked = 0.0
        self.trying = Backoff()
        self.uploading = Backoff()
        self.awaiting = Backoff()
        self.locking = Backoff()
        self._awaited = ""
        self._state = Shipped.load(work_dir, where)
        self._stores = stores
        self._search = search
        self._connection: tuple[Store, StoredRun] | None = None
        self._records: dict[str, Record] = {}  # of uploads, as far as they have been read
        self._saved = time.monotonic()
        self._changed = False
        self._lock = ShipperLock(work_dir)
        self._path = work_dir / journal.FILE
        self._left: float | None = None
        self._message = False  # whether the store has one

    @property
    def gone(self) -> bool:
        """True if no process writes the journal any more."""
        return self._left is not None

    @property
    def locked(self) -> bool:
        """True if no other process is shipping the run."""
        return self._lock.held

    @property
    def connected(self) -> bool:
        """True if the run is known in MLflow."""
        return self._connection is not None

    def writer_left(self) -> None:
        if self._left is None:
            self._left = time.monotonic()

    @property
    def idle(self) -> bool:
        """True if a step would find nothing to do; reading it checks the journal's size."""
        waiting = [what for what in self._waiting if not _order(what)]
        if self.gone or self._connection is None or self._state.error or waiting:
            return False
        try:
            return self._path.stat().st_size <= self._state.offset
        except OSError:
            return True

    def step(self) -> bool:
        """Ship the new records; return whether there were any.

        Raises:
            InUseError: another process is shipping this run.
            RunLostError: the run is missing or deleted in MLflow.
            Exception: the store or the disk failed temporarily. Earlier progress is kept.
        """
        self.looked = self._saved = time.monotonic()
        if not self._lock.acquire():
            self.locking.failed()
            raise InUseError("Another shipper is uploading this run.")
        self.locking.succeeded()
        if self._connection is None:
            self._state = Shipped.load(self.work_dir, self.uri)  # an earlier holder of the lock may have gone further
        elif not self._state.check_journal(self._path):
            self._records.clear()
            self._changed = True
        batch = self._next_batch()
        moved = batch is not None
        if self._connection is None:
            batch = self._connect(batch)
        assert self._connection is not None
        store, run = self._connection
        while batch is not None:
            self._ship(store, run, batch)
            batch = self._next_batch()
        moved |= self._upload(store, run)
        moved |= self._settle(store, run)
        error = self._state.error if self.uploading.failing else None if self._held is None else self._held.told
        if self.awaiting.failing:
            error = error or self._awaited
        if self._state.error != error:
            self._state.error = error
            self._changed = True
        self._save()
        return moved

    def failed(self, error: BaseException) -> None:
        """Record the error for readers and for the log. The next step looks the run up in MLflow again."""
        self._connection = None
        told = isinstance(error, TrainyardError | InUseError | RunLostError)  # a complete message
        text = first_line(error) if told else describe(error)
        with contextlib.suppress(OSError, DiskFullError):  # the disk may be the cause
            if text != self._state.error:
                self.log(text)
            self._state.error, self._changed = text, True
            if self._lock.held:
                self._save()

    def copies(self) -> Copies:
        """Return the copies that the run requests; a directory from elsewhere has none."""
        return Copies(self.work_dir, self.info if self._held is None else replace(self.info, copies=[]), self.log)

    def release(self) -> None:
        """Release the run so that another process can ship it."""
        self._lock.release()

    def note(self, text: str) -> None:
        """Record and log the items that are skipped permanently."""
        if text not in self._state.notes:
            self.log(f"skipped: {text}")
            self._state.notes = [*self._state.notes, text][-_MAX_NOTES:]
            self._changed = True

    def log(self, text: str) -> None:
        with (self.work_dir / LOG).open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    @property
    def _waiting(self) -> set[str]:
        """The pending uploads, without those that are held back."""
        return self._state.uploads.keys() - (set() if self._held is None else self._held.names)

    @property
    def _names(self) -> Names:
        return Names(self._state.names, self.log)

    def _connect(self, batch: _Batch | None) -> _Batch | None:
        """Find or create the run; return the records to ship first, without the tags that the run already has."""
        store, state = self._stores.get(self.uri), self._state
        batch = batch or _Batch(end=state.offset, time=state.time or self.info.start_time)
        new = self._lock.first and not self._search and state.run_id is None
        try:
            run = store.run(self.info, state.run_id, batch.tags, self._names, new=new)
        except RunLostError as error:
            if not error.gone:
                raise
            self.log(f"{error} The run is created again from the journal.")
            self._state = Shipped()
            return self._connect(self._next_batch())
        self._connection = store, run
        self._message = run.message or MESSAGE_TAG in batch.tags
        state.experiment_id, state.run_id, state.sent_status = run.experiment_id, run.run_id, run.status
        batch.params[:0] = self.info.params.items()
        batch.tags = {}
        return batch

    def _next_batch(self) -> _Batch | None:
        start = self._state.offset
        batch = _Batch(end=start)
        records = 0
        for record, end in journal.read(self._path, start):
            self._add(batch, record)
            batch.end, batch.time = end, record["time"]
            records += 1
            if len(batch.metrics) >= MAX_ITEMS or records >= _MAX_RECORDS:
                break
        return batch if records else None

    def _add(self, batch: _Batch, record: Record) -> None:
        match record:
            case {"kind": "metrics", "time": at, "step": step, "values": values}:
                batch.metrics += [(name, value, at, step) for name, value in values.items()]
                if "epoch" in record and EPOCH not in values and of_evaluation(values):
                    batch.metrics.append((EPOCH, record["epoch"], at, step))
            case {"kind": "params", "params": params}:
                batch.params += params.items()
            case {"kind": "tags", "tags": tags}:
                batch.tags |= tags
            case {"kind": "linked_tags"}:
                batch.uploads["links"] = batch.end, record
            case {"kind": "array", "name": name}:
                batch.uploads[f"array {name}"] = batch.end, record
            case {"kind": "artifact", "path": path, "to": to}:
                batch.uploads[f"artifact {Path(to) / Path(path).name}"] = batch.end, record
            case {"kind": "model"}:
                name = record.get("name", _MODEL)
                batch.uploads[_MODEL if name == _MODEL else f"{_MODEL} {name}"] = batch.end, record
            case {"kind": "inputs", "inputs": inputs}:
                batch.tags[DIGEST_TAG] = " ".join(f"{each['context']}={each['digest']}" for each in inputs)
                if self.info.parent is None:  # a sweep's own run has those of its jobs: a request less for each
                    batch.uploads["inputs"] = batch.end, record
            case {"kind": "register"}:
                batch.uploads[_REGISTER] = batch.end, record
            case {"kind": "status", "status": status, "message": message}:
                batch.status, batch.quiet = status, not message
                if message:
                    batch.tags[MESSAGE_TAG] = message
                else:
                    batch.tags.pop(MESSAGE_TAG, None)
            case _:
                batch.unknown.append(record["kind"])

    def _ship(self, store: Store, run: StoredRun, batch: _Batch) -> None:
        for kind in batch.unknown:
            self.note(f"a record of an unknown kind: {kind}")
        status = batch.status or self._state.status
        if self._state.sent_status in _FINAL and status not in _FINAL:
            store.status(run.run_id, "RUNNING", 0.0)
            self._state.sent_status = "RUNNING"
        store.log(run.run_id, self._names, metrics=batch.metrics, params=batch.params, tags=batch.tags, note=self.note)
        self._message |= MESSAGE_TAG in batch.tags
        if batch.quiet and self._message:  # the message of an earlier end: the run went on
            store.take_back(run.run_id, MESSAGE_TAG)
            self._message = False
        self._state.shipped_to(self._path, batch.end)
        self._state.status, self._state.time = status, batch.time
        for what, (start, record) in batch.uploads.items():
            if record["kind"] == "array":
                self._names("array", record["name"])  # here, in the journal's order: uploads may fail and come later
            if record["kind"] == "model" and record["checkpoint"] is None:  # withdrawn
                self._state.uploads.pop(what, None)
                self._records.pop(what, None)
            else:
                self._state.uploads[what], self._records[what] = start, record
        self._save_if_due()

    def _upload(self, store: Store, run: StoredRun) -> bool:
        moved = False
        for what, start in sorted(self._state.uploads.items(), key=lambda item: _order(item[0])):
            if _order(what) and self._state.status != "FINISHED":
                self._await_model(what)
                continue
            if not self.uploading.due:
                break
            if awaits_others(what) and not self.awaiting.due:
                continue
            record = self._records.get(what) or next(journal.read(self._path, start), (None, 0))[0]
            if record is not None and self._held is not None and self._held.holds(what, record):
                continue
            try:
                if record is not None:
                    self._upload_one(store, run, record)
            except MissingError as error:
                if self._is_replaced(what, start):
                    self.log(f"skipped: {what}: {error}, because the run was resumed")
                else:
                    self.note(f"{what}: {error}")
            except LeftOutError as error:
                self.note(f"{what}: {error}")
            except AwaitedError as error:
                self.awaiting.failed()
                self._awaited = str(error)
                continue
            except Exception as error:
                self.uploading.failed()
                self.failed(error)
                break
            del self._state.uploads[what]
            self._records.pop(what, None)
            self._save_if_due()
            self.uploading.succeeded()
            if awaits_others(what):
                self.awaiting.succeeded()
            moved = True
        return moved

    def _is_replaced(self, what: str, start: int) -> bool:
        """Return whether an upload is a checkpoint of a run that was resumed afterwards: the run keeps newer ones.

        Args:
            what: the upload.
            start: the offset of its record in the journal.
        """
        records = (record for record, _ in journal.read(self._path, start))
        resumed = any(record["kind"] == "status" and record["status"] == "RUNNING" for record in records)
        return what.startswith("artifact checkpoints/") and resumed

    def _upload_one(self, store: Store, run: StoredRun, record: Record) -> None:
        match record:
            case {"kind": "artifact", "path": path, "to": to}:
                run.artifacts.add(self.work_dir / path, to)
            case {"kind": "array", "name": name, "step": step, "value": value}:
                run.artifacts.array(self._names("array", name), {"name": name, "step": step, "value": encode(value)})
            case {"kind": "inputs", "inputs": inputs}:
                store.inputs(run, inputs)
            case {"kind": "linked_tags", "tags": tags}:
                store.log(run.run_id, self._names, tags=linked(store, run.experiment_id, tags), note=self.note)
            case {"kind": "model"}:
                self._save()  # a model takes time
                store.model(run, planned_model(self.work_dir, self.info, record), self._names)
            case {"kind": "register", "name": name, "alias": alias}:
                register(store, run, name, alias, (self.work_dir / record["of"]) if "of" in record else None)

    def _await_model(self, what: str) -> None:
        # A trainer that resumes the run may be writing by now.
        if self.gone and (self._state.status in _FINAL or not journal.being_written(self._path)):
            del self._state.uploads[what]  # the run did not finish: it has no model
            self._changed = True
        elif self._held is None:
            with contextlib.suppress(Exception):  # an error will show again, and be reported, when the model is logged
                warm_model()

    def _settle(self, store: Store, run: StoredRun) -> bool:
        """Send the final status once there is one."""
        status, moved = self._state.status, False
        if status not in _FINAL and self.gone and not journal.being_written(self._path):
            status = "KILLED"  # the trainer vanished
        if status in _FINAL and status != self._state.sent_status:
            store.status(run.run_id, status, self._state.time or self.info.start_time)
            self._state.sent_status = status
            self._changed = moved = True
        if self._left is not None and not self._waiting:
            # A dying process closes its files one by one: the journal may be held after the pipe has closed.
            self.done = status in _FINAL or time.monotonic() - self._left > PATIENCE
        return moved

    def _save(self) -> None:
        if self._changed:
            self._state.save(self.work_dir, self.uri)
            self._changed, self._saved = False, time.monotonic()

    def _save_if_due(self) -> None:
        self._changed = True
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self._save()


def awaits_others(what: str) -> bool:
    """Return whether an upload refers to another run, which may have to be shipped first."""
    return what in (_REGISTER, "links")


def _order(what: str) -> int:
    """Return the position of an upload in the order: a model comes after all files, and only for a finished run; its
    registration comes last."""
    kind = what.partition(" ")[0]
    return 2 if kind == _REGISTER else 1 if kind == _MODEL else 0
