"""One run's way from its journal into its store."""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from trainyard.errors import TrainyardError
from trainyard.track import journal
from trainyard.track.journal import Record
from trainyard.track.run_info import RunInfo
from trainyard.track.shipped import LOG, Shipped, ShipperLock
from trainyard.track.shipper.backoff import PATIENCE, Backoff
from trainyard.track.shipper.store import MAX_METRICS, LeftOutError, RunLostError, Store, Stores, describe, warm_model

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

_FINAL = ("FINISHED", "FAILED", "KILLED")
_MODEL = "model"
_MAX_RECORDS = 5000  # read into one chunk
_MAX_NOTES = 20


class InUseError(Exception):
    """Another process is shipping this run."""


class RunShipper:
    """Ships one run, from where `shipped.json` says on.

    Metrics, params and tags go first, in the journal's order; uploads, which may be slow or fail for reasons of their
    own, are remembered and follow; the final status comes last.

    Args:
        work_dir: the run's directory, with its `run.json`.
        stores: shared by the runs of a process.
        uri: the store to ship to; by default the one in `run.json`.

    Attributes:
        done: the trainer is gone, and everything is shipped.
        trying, uploading: when to go on after a failure that is this run's own.

    Raises:
        TrainyardError: there is no run here, or none that says where it is tracked.
    """

    def __init__(self, work_dir: Path, stores: Stores, uri: str | None = None) -> None:
        self.work_dir = work_dir
        self.info = RunInfo.read(work_dir)
        where = uri or self.info.uri
        if where is None:
            raise TrainyardError(f"{work_dir}: this run is not tracked; name the MLflow URI to ship it to with --uri.")
        self.uri = where
        self.done = False
        self.trying = Backoff()
        self.uploading = Backoff()
        self._state = Shipped.load(work_dir, where)
        self._stores = stores
        self._store: Store | None = None
        self._lock = ShipperLock(work_dir)
        self._path = work_dir / journal.FILE
        self._left: float | None = None

    @property
    def gone(self) -> bool:
        """Whether nobody writes the journal any more."""
        return self._left is not None

    def writer_left(self) -> None:
        if self._left is None:
            self._left = time.monotonic()

    def step(self) -> bool:
        """Ships what there is; returns whether there was anything.

        Raises:
            InUseError: another process ships this run.
            RunLostError: MLflow has it no more, or has it deleted.
            Exception: the store, or the disk, would not have it now. What went before is kept.
        """
        if not self._lock.acquire():
            raise InUseError("another process is shipping this run")
        store, run_id = self._connect()
        moved = False
        while chunk := self._next_chunk():
            self._ship(store, run_id, chunk)
            moved = True
        moved |= self._upload(store, run_id)
        moved |= self._settle(store, run_id)
        if self._state.error is not None and not self.uploading.failing:
            self._state.error = None
            self._save()
        return moved

    def failed(self, error: BaseException) -> None:
        """Remembers why nothing moves, for whoever asks and for the log. The next step finds the run in MLflow anew."""
        self._store = None
        text = describe(error)
        with contextlib.suppress(OSError):  # the disk may be what is wrong
            if text != self._state.error:
                self.log(text)
            self._state.error = text
            if self._lock.held:
                self._save()

    def release(self) -> None:
        """Lets another process ship the run."""
        self._lock.release()

    def note(self, text: str) -> None:
        """Tells what is left out for good."""
        if text not in self._state.notes:
            self.log(f"left out: {text}")
            self._state.notes = [*self._state.notes, text][-_MAX_NOTES:]

    def log(self, text: str) -> None:
        with (self.work_dir / LOG).open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _connect(self) -> tuple[Store, str]:
        if self._store is not None and self._state.run_id is not None:
            return self._store, self._state.run_id
        self._state = Shipped.load(self.work_dir, self.uri)  # whoever held the lock before may have gone further
        store = self._stores.get(self.uri)
        try:
            experiment_id, run_id = store.run(self.info, self._state.run_id)
        except RunLostError as error:
            if not error.gone:
                raise
            self.log(f"{error} It is made anew from the journal.")
            self._state = Shipped()
            experiment_id, run_id = store.run(self.info, None)
        self._state.experiment_id, self._state.run_id = experiment_id, run_id
        self._save()
        store.log(run_id, params=self.info.params, note=self.note)
        self._store = store
        return store, run_id

    def _next_chunk(self) -> list[tuple[Record, int, int]]:
        """The next records, each with the offsets at which it starts and ends: about as many as one request takes."""
        chunk: list[tuple[Record, int, int]] = []
        points = 0
        start = self._state.offset
        for record, end in journal.read(self._path, start):
            chunk.append((record, start, end))
            start = end
            points += len(record["values"]) if record["kind"] == "metrics" else 0
            if points >= MAX_METRICS or len(chunk) >= _MAX_RECORDS:
                break
        return chunk

    def _ship(self, store: Store, run_id: str, chunk: Sequence[tuple[Record, int, int]]) -> None:
        metrics: list[tuple[str, float, float, int]] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        uploads = dict(self._state.uploads)
        status = self._state.status
        for record, start, _ in chunk:
            match record:
                case {"kind": "metrics", "time": at, "step": step, "values": values}:
                    metrics += [(name, value, at, step) for name, value in values.items()]
                case {"kind": "params", "params": more}:
                    params = more | params  # the first value of each, which is also what MLflow keeps
                case {"kind": "tags", "tags": more}:
                    tags |= more
                case {"kind": "array", "name": name}:
                    uploads[f"array {name}"] = start
                case {"kind": "artifact", "path": path, "to": to}:
                    uploads[f"artifact {Path(to) / Path(path).name}"] = start
                case {"kind": "model"}:
                    uploads[_MODEL] = start
                case {"kind": "status", "status": status, "message": message}:
                    if message:
                        tags["trainyard.message"] = message
                case _:
                    self.note(f"a record of an unknown kind: {record['kind']}")
        if self._state.sent_status in _FINAL and status not in _FINAL:
            store.status(run_id, "RUNNING", 0.0)
            self._state.sent_status = "RUNNING"
        store.log(run_id, metrics=metrics, params=params, tags=tags, note=self.note)
        last, _, self._state.offset = chunk[-1]
        self._state.uploads, self._state.status, self._state.time = uploads, status, last["time"]
        self._save()

    def _upload(self, store: Store, run_id: str) -> bool:
        moved = False
        for what, start in sorted(self._state.uploads.items(), key=lambda item: item[0] == _MODEL):
            if what == _MODEL and self._state.status != "FINISHED":
                self._await_model()
                continue
            if not self.uploading.due:
                break
            record, _ = next(journal.read(self._path, start), (None, 0))
            try:
                if record is not None:
                    self._upload_one(store, run_id, record)
            except LeftOutError as error:
                self.note(f"{what}: {error}")
            except Exception as error:
                self.uploading.failed()
                self.failed(error)
                break
            del self._state.uploads[what]
            self._save()
            self.uploading.succeeded()
            moved = True
        return moved

    def _upload_one(self, store: Store, run_id: str, record: Record) -> None:
        match record:
            case {"kind": "artifact", "path": path, "to": to}:
                store.artifact(run_id, self.work_dir / path, to)
            case {"kind": "array", "name": name, "step": step, "value": value}:
                store.array(run_id, name, {"name": name, "step": step, "value": journal.encode(value)})
            case {"kind": "model", "checkpoint": checkpoint, "loader": loader, "time": at}:

                def build() -> tuple[nn.Module, np.ndarray | None]:
                    module, _, function = loader.partition(":")
                    sys.path[:0] = [folder for folder in self.info.python_path if folder not in sys.path]
                    load = getattr(importlib.import_module(module), function)
                    return cast("tuple[nn.Module, np.ndarray | None]", load(self.work_dir, self.work_dir / checkpoint))

                store.model(cast(str, self._state.experiment_id), run_id, build, f"{checkpoint}@{at}")

    def _await_model(self) -> None:
        if self.gone:
            del self._state.uploads[_MODEL]  # the run did not finish: it has no model
        else:
            with contextlib.suppress(Exception):  # what is wrong will show, and be told, when the model is logged
                warm_model()

    def _settle(self, store: Store, run_id: str) -> bool:
        """Sends the final status, once there is one."""
        status, moved = self._state.status, False
        if status not in _FINAL and self.gone and not journal.being_written(self._path):
            status = "KILLED"  # the trainer vanished
        if status in _FINAL and status != self._state.sent_status:
            store.status(run_id, status, self._state.time or self.info.start_time)
            self._state.sent_status = status
            self._save()
            moved = True
        if self._left is not None and not self._state.uploads:
            # A dying process lets go of its files one by one: the journal may be held after the pipe has closed.
            self.done = status in _FINAL or time.monotonic() - self._left > PATIENCE
        return moved

    def _save(self) -> None:
        self._state.save(self.work_dir, self.uri)
