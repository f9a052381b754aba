"""Worker: a forked process that runs one attempt at one task, writes a report, and ends."""

from __future__ import annotations

import atexit
import faulthandler
import io
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from trainyard.errors import JobPaused, TrainyardError
from trainyard.sweep.executor.shipping import portable
from trainyard.sweep.executor.shipping.portable import Folders
from trainyard.sweep.executor.slots import Slot, environment

INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit statuses of a process that was asked to end
_MAGIC = b"trainyard report"


@dataclass(frozen=True)
class WorkerSetting:
    """Settings that a worker inherits from the process that created the task."""

    environ: dict[str, str]
    cwd: str
    path: list[str]
    argv: list[str]
    cpus: tuple[int, ...] | None
    threads: int
    log: Path | None
    folders: Folders = Folders()  # noqa: RUF009 - it is frozen


@dataclass(frozen=True)
class Place:
    """Data that a process that creates tasks passes to workers: its folder, `sys.path` and `sys.argv`."""

    cwd: str
    path: Sequence[object]
    argv: Sequence[str]


def worker_setting(
    slots: Sequence[Slot],
    threads: int | None,
    log: Path | None,
    place: Place,
    folders: Folders = Folders(),  # noqa: B008 - it is frozen
) -> WorkerSetting:
    """Return the settings of a worker on some slots of this machine.

    Args:
        slots: the slots.
        threads: the threads that it uses; None for those of its slot.
        log: the file to which its output is appended.
        place: the place at which the task was created.
        folders: the folders of this machine that correspond to those of the head.
    """
    if threads is not None:
        slots = [replace(slot, threads=threads) for slot in slots]
    cpus = None if slots[0].cpus is None else tuple(cpu for slot in slots for cpu in slot.cpus or ())
    path = [str(entry) for entry in place.path]
    environ = environment(slots, os.environ)
    return WorkerSetting(environ, place.cwd, path, list(place.argv), cpus, slots[0].threads, log, folders)


@dataclass(frozen=True)
class TaskReport:
    """Report of a worker on how its task ended.

    Attributes:
        kind: it returned; it raised an error; it raised an error because it was asked to end (`KeyboardInterrupt`, or
            status 130 or 143), or because it must pause.
        value: the value that it returned, pickled.
        out_of_memory: whether a CUDA device was out of memory.
    """

    kind: Literal["done", "failed", "interrupted", "paused"]
    value: bytes = b""
    error: str | None = None
    traceback: str | None = None
    out_of_memory: bool = False


def write_task(file: BinaryIO, setting: WorkerSetting, call: bytes, common: bytes = b"") -> None:
    """Write the input of `work`: settings, the call, and the shared data, pickled."""
    pickle.dump(setting, file)
    file.write(call)
    file.write(common)
    file.seek(0)


def work(task: BinaryIO, report: BinaryIO) -> None:
    """Run the task in the file `task`, write its report into `report`, and end this process."""
    process = os.getpid()
    try:
        with task:
            setting = pickle.load(task)
            _take_over(setting)
            function, *arguments = portable.load(task, setting.folders)
            if common := task.read():
                arguments.append(portable.load(io.BytesIO(common), setting.folders))
        stand_in_for_main(function)
        outcome = TaskReport("done", _pickled(function(*arguments), setting.folders))
    except BaseException as error:  # any error is the task's, and belongs in its report
        outcome = _report_of(error)
    if os.getpid() == process:  # else it is a child that the task has forked and that returned from the task
        _write_report(report, outcome)
    _end()


def parsed_report(content: bytes) -> TaskReport | None:
    """Return the report that a worker left; None if there is none, or only a part of one."""
    begin = len(_MAGIC) + 8
    size = int.from_bytes(content[len(_MAGIC) : begin], "big")
    if not content.startswith(_MAGIC) or len(content) != begin + size:
        return None
    try:
        report = pickle.loads(content[begin:])
    except Exception:
        return None
    return report if isinstance(report, TaskReport) else None


def one_line(error: BaseException) -> str:
    """Return the error's class and the first line of its message, shortened to fit into a table or a packet."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:
        lines = ["(its message cannot be shown)"]
    return ": ".join([type(error).__name__, *lines[:1]])[:1000]


def _take_over(setting: WorkerSetting) -> None:
    output = os.open(os.devnull, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.chdir(setting.cwd)
    os.environ.clear()
    os.environ.update(setting.environ)
    sys.path[:] = setting.path
    sys.argv[:] = setting.argv
    if setting.log is not None:
        setting.log.parent.mkdir(parents=True, exist_ok=True)
        with setting.log.open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # the log has what a killed task printed
    faulthandler.enable()
    if setting.cpus is not None:
        os.sched_setaffinity(0, setting.cpus)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(setting.threads)  # a library that is loaded does not read OMP_NUM_THREADS again
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()  # else all workers would draw the same numbers; `random` reseeds itself after a fork


def stand_in_for_main(function: Callable[[Any], Any]) -> None:
    """Define the names of a script in the worker's `__main__` too, so that its classes can be pickled there.

    Only names that were sent with the function are defined: the script itself does not run again.
    """
    code = function if hasattr(function, "__globals__") else type(function).__call__  # a function, or an object
    if getattr(function, "__module__", None) == "__main__" and hasattr(code, "__globals__"):
        main = vars(sys.modules["__main__"])
        main.update({name: value for name, value in code.__globals__.items() if not name.startswith("__")})


def _pickled(value: Any, folders: Folders) -> bytes:
    try:
        return portable.dumps(value, folders)
    except Exception as error:
        raise TypeError(f"the return value of the task function cannot be pickled: {one_line(error)}") from error


def _report_of(error: BaseException) -> TaskReport:
    code = error.code if isinstance(error, SystemExit) else getattr(error, "status", None)
    if isinstance(error, SystemExit) and code in (None, 0):
        return TaskReport("done", pickle.dumps(None))
    try:
        # Leave out the frame of work().
        trace = "".join(
            traceback.format_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
        )
    except Exception:
        trace = None
    if isinstance(error, TrainyardError):
        trace = None  # its message explains it in full
    asked = isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit | TrainyardError) and code in INTERRUPTED
    )
    kind: Literal["failed", "interrupted", "paused"] = "interrupted" if asked else "failed"
    if isinstance(error, JobPaused):
        kind = "paused"
    told = one_line(error)
    if asked and isinstance(error, TrainyardError):
        told = told.removeprefix(f"{type(error).__name__}: ")  # it is no error of the task
    return TaskReport(kind, error=told, traceback=trace, out_of_memory=_is_out_of_memory(error))


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether the error is torch's CUDA out-of-memory error, or was raised from it, as Hydra does."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in one_line(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _write_report(file: BinaryIO, report: TaskReport) -> None:
    content = pickle.dumps(report)
    file.seek(0)
    file.truncate()
    file.write(_MAGIC + len(content).to_bytes(8, "big") + content)
    file.flush()


def _end() -> None:
    """End this process like the interpreter, but without clearing its modules, which takes longer than the fork."""
    try:
        threading._shutdown()  # type: ignore[attr-defined] # waits for the threads that are not daemons
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # closed by the task
            continue
    os._exit(0)
