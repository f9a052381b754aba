"""Journal: the append-only record of a run; the trainer writes it, the shipper and the reports read it.

Each line is a JSON object with its `kind` and `time` (Unix seconds). JSON has no NaN and no infinity, so these
numbers are written as the strings `"NaN"`, `"Infinity"` and `"-Infinity"`; `read` returns them as numbers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, zip_longest
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from trainyard.errors import TrainyardError
from trainyard.files import append_whole
from trainyard.track.lines import LAST_STEP, parsed
from trainyard.track.lines import Record as Record
from trainyard.track.lines import encode as encode

if TYPE_CHECKING:
    from trainyard.track.stacked_points import StackedPoints

FILE = "metrics.jsonl"

Point = tuple[int, int, float, tuple[str, ...], Sequence[float]]
"""Step, epoch, time (Unix seconds), and the names and values of metrics."""
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

_BLOCK = 1 << 20
to_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_NON_FINITE_REPR = ('":nan', '":inf', '":-inf')


class Buffer(Protocol):
    """Buffer of points that `Journal.points` will write: see `trainyard.track.scalars.ScalarBuffer`."""

    def flush(self) -> None: ...


class Journal:
    """The journal of one run. Only one object can write it at a time.

    An existing journal is continued: an incomplete last line (after a kill) is removed, and a point (metric and step)
    that is already in the file is not written again, because a resumed run computes the points after its checkpoint
    again.

    Args:
        work_dir: the run's directory; it must exist. None: the run has no directory, or another process writes its
            journal. No records are then written, and only `latest` and `latest_steps` are updated.

    Attributes:
        buffer: flushed before each record; None if no points are pending.

    Raises:
        TrainyardError: another process is writing this journal.
        OSError: the directory cannot be written.
    """

    def __init__(self, work_dir: str | Path | None = None) -> None:
        self.path: Path | None = None
        self._fd = -1
        self._marks: dict[str, int] = {}
        self._array_marks: dict[str, int] = {}
        self._forms: dict[tuple[str, ...], str] = {}
        self._latest: dict[str, float] = {}
        self._latest_steps: dict[str, int] = {}
        self._models: set[str] = set()
        self._highest: float = -math.inf
        self.buffer: Buffer | None = None
        if work_dir is None:
            return
        self.work_dir = Path(work_dir).absolute()
        self.path = path = self.work_dir / FILE
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._closing = weakref.finalize(self, os.close, self._fd)  # of a journal that nobody closes, too
        self._closing.atexit = False
        try:
            _lock(self._fd, path)
            self._reopen()
        except BaseException:
            self.close()
            raise
        self._highest = max(self._marks.values(), default=-math.inf)

    @property
    def writes(self) -> bool:
        """True if the journal has a file, so that other files can be written to the same directory."""
        return self.path is not None

    @property
    def latest(self) -> dict[str, float]:
        """The latest value of each metric."""
        self._flush()
        return self._latest

    @property
    def latest_steps(self) -> dict[str, int]:
        """The step of the latest value of each metric."""
        self._flush()
        return self._latest_steps

    def metrics(
        self, step: int, values: Mapping[str, float], epoch: int | None = None, *, of: str | None = None
    ) -> None:
        """Record values of metrics at `step`, in iterations or epochs; all points of a metric have the same unit.

        Args:
            step: the step.
            values: the values by name.
            epoch: the epoch.
            of: the name of the evaluated model (see `model`), if it is not the model of this step.
        """
        self._flush()
        self._write(self._metrics(time.time(), step, values, epoch, of))

    def points(self, points: Sequence[Point]) -> None:
        """Record many points with one system call; see `metrics`.

        Args:
            points: the points, whose values are Python floats.
        """
        text = ""
        self._keep_latest(points)
        if not self.writes:
            return
        for names, run in groupby(points, itemgetter(3)):
            same = list(run)
            lines = ""
            if names and min(map(itemgetter(0), same)) > self._highest:
                form = self._forms.get(names) or self._form(names)
                lines = "".join([form % (at, step, epoch, *values) for step, epoch, at, _, values in same])
            if not lines or any(name in lines for name in _NON_FINITE_REPR):
                lines = self._one_by_one(same)
            text += lines
        self._write(text)

    def stacked_points(self, blocks: Sequence[StackedPoints], member: int) -> None:
        """Record points of a member of a stack; see `points`."""
        text = ""
        for block in blocks:
            latest = block.latest(member)
            self._latest.update(latest)
            self._latest_steps.update(dict.fromkeys(latest, block.last(member)))
            if self.writes:
                lines = block.text(member) if block.names and block.first(member) > self._highest else None
                text += self._one_by_one(block.points(member)) if lines is None else lines
        self._write(text)

    def _one_by_one(self, points: Sequence[Point]) -> str:
        """Return the lines of points with numbers that are not finite, or that are already in the file."""
        lines = [
            self._metrics(at, step, dict(zip(names, values, strict=True)), epoch)
            for step, epoch, at, names, values in points
        ]
        return "".join(lines)

    def _keep_latest(self, points: Sequence[Point]) -> None:
        for point, following in zip_longest(points, points[1:]):
            step, _, _, names, values = point
            if following is None or following[3] is not names:
                self._latest.update(zip(names, values, strict=True))
                self._latest_steps.update(dict.fromkeys(names, step))

    def array(self, name: str, step: int, value: Any) -> None:
        """Record an array, such as a confusion matrix: nested lists, a NumPy array or a tensor."""
        self._flush()
        if step <= self._array_marks.get(name, -math.inf):
            return
        nested = value.tolist() if hasattr(value, "tolist") else value
        self._add("array", name=name, step=int(step), value=nested)

    def artifact(self, path: str | Path, to: str = "") -> None:
        """Record a file or folder inside the run's directory, to be uploaded into the artifact folder `to`.

        The shipper reads the file when it processes the record. A file that no longer exists is skipped.

        Raises:
            ValueError: `path` is outside the run's directory.
        """
        self._add("artifact", path=self._inside(path), to=to)

    def model(
        self,
        checkpoint: str | Path,
        loader: str,
        predict: str | None = None,
        *,
        name: str = "model",
        step: int | None = None,
        form: str = "pickle",
    ) -> None:
        """Record a checkpoint that is logged as an MLflow model after the run is FINISHED.

        A later call with the same name replaces this record.

        Args:
            checkpoint: a file inside the run's directory.
            loader: `"module:function"`, called as `function(work_dir: Path, checkpoint: Path)`. The function returns
                the `nn.Module` and an input example (a numpy array or None). The shipper calls it without access to a
                GPU.
            predict: `"module:function"`, called as `function(net, inputs)` for the predictions that MLflow serves;
                None: `net(inputs)`.
            name: the name of the model in MLflow: `mlflow.pytorch.load_model("runs:/RUN_ID/<name>")` opens it.
            step: the step at which the checkpoint was saved. The model has the metrics of this step, and the metrics
                that were recorded with `of`. None: no metrics.
            form: `pickle`, or `export` for a `torch.export` program of the predictions.

        Raises:
            ValueError: `checkpoint` is outside the run's directory.
        """
        optional = {"predict": predict, "name": None if name == "model" else name, "step": step}
        named = {key: value for key, value in optional.items() if value is not None}
        named |= {} if form == "pickle" else {"form": form}
        self._models.add(name)
        self._add("model", checkpoint=self._inside(checkpoint), loader=loader, **named)

    def withdraw_model(self, name: str = "model") -> None:
        """Record that the run has no model of this name, if this object has recorded one: its checkpoint was never
        saved."""
        if name in self._models:
            self._models.remove(name)
            self._add("model", checkpoint=None, **({} if name == "model" else {"name": name}))

    def inputs(self, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Record the data sets of the run, each with `name`, `digest`, `context`, `source` and other properties."""
        self._add("inputs", inputs=[dict(each) for each in inputs])

    def register(self, name: str, alias: str, of: str | None = None) -> None:
        """Record a registration of a model in MLflow, as the next version of `name` with this alias.

        Args:
            name: the name of the registered model.
            alias: the alias of the version; an earlier version loses the alias.
            of: the directory of the run that logged the model, relative to the directory of this run; None: this run.
        """
        self._add("register", name=name, alias=alias, **({} if of is None else {"of": of}))

    def params(self, params: Mapping[str, Any]) -> None:
        """Record settings that were not known when the run was opened; MLflow keeps the first values."""
        self._add("params", params={key: str(value) for key, value in params.items()})

    def tags(self, tags: Mapping[str, Any]) -> None:
        self._add("tags", tags={key: str(value) for key, value in tags.items()})

    def linked_tags(self, tags: Mapping[str, Any]) -> None:
        """Record tags that refer to other runs as `run:ID`, with the IDs of their `RunInfo`.

        In MLflow, `run:ID` is replaced with the MLflow ID of the other run. In `[a link](run:ID)`, it is replaced with
        a link to the page of the run.
        """
        self._add("linked_tags", tags={key: str(value) for key, value in tags.items()})

    def status(self, status: Status, message: str = "") -> None:
        """Record the run's status: RUNNING when it starts or is resumed, another status when it ends."""
        self._add("status", status=status, message=message)

    def gone(self) -> str | None:
        """Return the reason why the open file is no longer at its path; None if it is at its path."""
        if not self.writes or self.path is None:
            return None
        own = os.fstat(self._fd)
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(self.path)  # noqa: PTH116 - the same numbers as fstat
            if (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino):
                return None
        return "removed" if own.st_nlink == 0 else "moved"

    def lacks(self, name: str, step: int = 0) -> bool:
        """Return whether the journal has no point with this name at `step` or later."""
        return self._marks.get(name, -math.inf) < step

    def close(self) -> None:
        if self._fd >= 0:
            self._closing()
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _inside(self, path: str | Path) -> str:
        if not self.writes:
            return ""
        full = Path(os.path.normpath(self.work_dir / path))
        if not full.is_relative_to(self.work_dir):
            raise ValueError(f"{path} is outside the directory of the run, {self.work_dir}.")
        return str(full.relative_to(self.work_dir))

    def _add(self, kind: str, **fields: Any) -> None:
        self._flush()
        self._write(_line({"kind": kind, "time": time.time(), **fields}))

    def _flush(self) -> None:
        if self.buffer is not None:
            self.buffer.flush()

    def _metrics(
        self, at: float, step: int, values: Mapping[str, float], epoch: int | None, of: str | None = None
    ) -> str:
        """Return the line of a point, without values that are already in the file; empty if all are."""
        if step <= self._highest:
            marks = self._marks
            values = {name: value for name, value in values.items() if step > marks.get(name, -math.inf)}
        if not values:
            return ""
        record: Record = {"kind": "metrics", "time": at, "step": int(step)}
        if epoch is not None:
            record["epoch"] = int(epoch)
        if of is not None:
            record["of"] = of
        record["values"] = {name: float(value) for name, value in values.items()}
        return _line(record)

    def _form(self, names: tuple[str, ...]) -> str:
        """Return the `%` template of `_metrics` for points of these names whose values are all finite."""
        values = ",".join(to_json(name).replace("%", "%%") + ":%r" for name in names)
        form = self._forms[names] = f'{{"kind":"metrics","time":%r,"step":%d,"epoch":%d,"values":{{{values}}}}}\n'
        return form

    def _write(self, text: str) -> None:
        if not text or not self.writes:
            return
        assert self.path is not None
        append_whole(self._fd, text.encode(), self.path)

    def _reopen(self) -> None:
        end = 0
        with open(self._fd, "rb", closefd=False) as file:  # closing another descriptor of the file would drop the lock
            for lines in _whole_lines(file):
                end += sum(map(len, lines))
                for record in _parse(lines):
                    self._mark(record)
        os.ftruncate(self._fd, end)

    def _mark(self, record: Record) -> None:
        kind = record.get("kind")
        with contextlib.suppress(KeyError, TypeError):  # records that `read` skips too
            if kind == "metrics":
                step, marks = record["step"], self._marks
                if type(step) is not int or abs(step) > LAST_STEP:
                    return  # all points after it would be taken for known ones
                for name in record["values"]:
                    if marks.get(name, -math.inf) < step:
                        marks[name] = step
            elif kind == "array":
                name, step = record["name"], record["step"]
                if type(step) is not int or abs(step) > LAST_STEP:
                    return
                self._array_marks[name] = max(step, self._array_marks.get(name, step))


def _line(record: Record) -> str:
    try:
        return to_json(record) + "\n"
    except ValueError:
        return to_json(encode(record)) + "\n"


def read(path: str | Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Yield the complete records of a journal from byte `offset` on, each with the offset at which it ends.

    An incomplete last line is not read, a line that is not a record is skipped, and a missing file counts as empty.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115 (closed by the with below; only its opening may fail)
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            if (record := parsed(line)) is not None:
                yield record, offset


def being_written(path: str | Path) -> bool:
    """Return whether another process has the journal open for writing, so that its trainer is alive."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        os.lockf(fd, os.F_TEST, 0)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    finally:
        os.close(fd)
    return False


@contextlib.contextmanager
def kept_free(path: str | Path) -> Iterator[bool]:
    """Prevent runs from writing the journal; yield False, and prevent nothing, if a run is writing it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # there is no journal, or it is read-only for this user
        yield not being_written(path)
        return
    try:
        free = True
        try:
            _lock(fd, Path(path))
        except TrainyardError:
            free = False
        yield free
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> None:
    # A record lock ends with the process, and its forks do not inherit it: a data loader's orphan cannot hold it.
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise TrainyardError(
                f"{path.parent}: another process is using this directory. Wait until that process ends, or use another "
                "directory (hydra.run.dir, or hydra.sweep.dir for a sweep, or work_dir of the Runner)."
            ) from error
        # Some network file systems have no locks; the journal works without them.


def _whole_lines(file: Any) -> Iterator[list[bytes]]:
    while lines := file.readlines(_BLOCK):
        if not lines[-1].endswith(b"\n"):
            lines.pop()
        yield lines


def _parse(lines: list[bytes]) -> list[Record]:
    try:
        records = json.loads(b"[" + b",".join(lines) + b"]")  # much faster than line by line
    except (ValueError, RecursionError):
        records = []
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]
