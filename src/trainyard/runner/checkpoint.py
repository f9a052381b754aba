"""Checkpoint files: atomic writes, checksums verified on reading, no code run from a file."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from trainyard.errors import ConfigError, TrainyardError, first_line, quoted
from trainyard.files import DirectoryGoneError, despite_absence, put, remove, writing
from trainyard.runner.file_sum import SummedWriter, holds

log = logging.getLogger(__name__)

LAST = "last.json"
AT_ONCE = 8
"""Checkpoints of a stack that are written at the same time. A small one mostly waits for the disk."""
NOT_PLAIN = (pickle.PickleError, AttributeError, TypeError)
"""Errors of writing or reading objects other than tensors and plain values."""


VERSION = 1
"""Version of the format of checkpoints."""
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("model", "optimizer", "schedule", "step", "loop", "member", "hooks"), dict),
    **dict.fromkeys(("epoch", "iter", "seed"), int),
}
"""Entries of each checkpoint."""
WEIGHTS = ("eval_model", "model", "state_dict", "model_state_dict")
"""Entries that can contain the weights of a file, in order of preference: those of Trainyard, MMEngine, Lightning, …"""


class DamagedCheckpointError(TrainyardError):
    """A file that is truncated or modified, or is not a checkpoint."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name, flush it to the disk, and rename it.

    The file has torch's format, a zip archive, with a checksum of the complete file as its comment, which `read`
    verifies.

    Raises:
        DirectoryGoneError: the folder above that of the file does not exist.
        DiskFullError: no space is left.
    """
    try:
        despite_absence(path.parent.parent, lambda: _write(path, state))
    except FileNotFoundError as error:
        raise DirectoryGoneError(path.parent.parent, path.name) from error


def _write(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path, temporary), temporary.open("wb") as file:
        summed = SummedWriter(file)
        torch.save(state, summed)  # type: ignore[arg-type] # it is given what torch calls of a file
        summed.end()
        file.flush()
        os.fsync(file.fileno())
    put(temporary, path)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint that `save` wrote onto the CPU, after its checksum has been verified.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedCheckpointError: the file is truncated, modified, or not a checkpoint of this version.
    """
    state = read(path)
    if not isinstance(state, dict):
        raise DamagedCheckpointError(
            f"{path} was written by torch.save, but is not a checkpoint: it contains an object of type {_kind(state)}"
        )
    version = state.get("version", VERSION)
    if version != VERSION or isinstance(version, bool):
        raise DamagedCheckpointError(
            f"{path} has version {version!r} of the format, but this version of Trainyard reads version {VERSION}. "
            "Use the version of Trainyard that saved the file"
        )
    missing = [name for name in _KINDS if name not in state]
    parts = (state, *(state[name] for name in WEIGHTS if name in state))
    if missing and any(isinstance(value, torch.Tensor) for part in parts for value in _values(part)):
        raise DamagedCheckpointError(
            f"{path} contains weights, but not the complete training state of a run. "
            f"To start from these weights, use load_from={path}"
        )
    if missing:
        raise DamagedCheckpointError(
            f"{path} was written by torch.save, but is not a checkpoint: it has no {missing[0]!r}"
        )
    for name, kind in _KINDS.items():
        if not isinstance(state[name], kind) or isinstance(state[name], bool):
            wanted = "a mapping" if kind is dict else "an integer"
            raise DamagedCheckpointError(
                f"{path} has an object of type {_kind(state[name])} as {name!r} instead of {wanted}"
            )
    return state


def _values(part: Any) -> Iterable[Any]:
    return part.values() if isinstance(part, dict) else ()


def _kind(value: object) -> str:
    return type(value).__name__


def read(path: Path) -> Any:
    """Read what `torch.save` wrote onto the CPU. Files of torch before 1.6 have no checksums to verify.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedCheckpointError: the file is truncated, modified, or contains objects other than tensors and plain
            values.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            from trainyard.distributed import sharded  # the import takes a second

            if not (path / sharded.REST).exists():
                raise no_checkpoint(path, f"not a sharded checkpoint: it contains no {sharded.REST}")
            return sharded.load(path)
        if not stat.S_ISREG(mode):  # to open a pipe waits for a writer
            raise DamagedCheckpointError(f"{path} is neither a file nor the folder of a sharded checkpoint")
        _verify(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        if not path.exists():
            raise
        raise DamagedCheckpointError(f"{path} is not a complete checkpoint ({first_line(error)})") from error
    except DamagedCheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise DamagedCheckpointError(f"{path} contains objects other than tensors and plain values") from error
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read ({first_line(error)})") from error
    except Exception as error:  # bytes at random bring the readers of zip, pickle and tensors to raise anything
        raise DamagedCheckpointError(f"{path} is not a complete checkpoint ({first_line(error)})") from error


def no_checkpoint(folder: Path, reason: str) -> DamagedCheckpointError:
    """Return the error for a folder without a checkpoint, such as the directory of a run."""
    told = f"{folder} is a folder, but {reason}"
    files = sorted([*folder.glob("*.pt"), *folder.glob("checkpoints/*.pt")])
    return DamagedCheckpointError(f"{told}. Specify a checkpoint in it, such as {files[-1]}" if files else told)


def _verify(path: Path) -> None:
    """Verify the checksum of a torch file; for a file that Trainyard did not write, the checksums of its records.

    Raises:
        DamagedCheckpointError: it does not match.
    """
    with path.open("rb") as file:
        first = file.read(1)
    if not first:
        raise DamagedCheckpointError(f"{path} is empty")
    if first == pickle.PROTO:
        return
    whole = holds(path)
    if whole is False and not zipfile.is_zipfile(path):
        raise DamagedCheckpointError(f"{path} was not written by torch.save, or is truncated")
    if whole is False:
        raise DamagedCheckpointError(f"{path} does not match its checksum")
    if whole is None:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise DamagedCheckpointError(f"{path} is damaged: the checksum of {damaged} does not match")


def misfit(value: Any, place: tuple[str, ...] = ()) -> tuple[tuple[str, ...], Any] | None:
    """Return the first object in a nest of dicts, lists and tuples that a checkpoint cannot contain, and its place."""
    if isinstance(value, dict | list | tuple):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        found = (misfit(entry, (*place, str(key))) for key, entry in entries)
        return next((each for each in found if each is not None), None)
    if isinstance(value, torch.Tensor | str | int | float | None):
        return None
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except NOT_PLAIN:
        return place, value
    return None


def link(source: Path, target: Path) -> None:
    """Give a checkpoint a second name, replacing any file with this name, without writing the data twice."""
    # A name other than the temporary one of `save`: if a run is killed here, the next `save` must not write into the
    # source.
    temporary = target.with_name(f".{target.name}.link")
    remove(temporary)
    with writing(target, temporary):
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=_link_file)
        else:
            _link_file(source, temporary)
        put(temporary, target)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def write_last(directory: Path, history: list[str]) -> None:
    """Record the regular checkpoints of a directory, oldest first; a resumed run starts from the last one."""
    temporary = directory / f".{LAST}.tmp"
    record = {"last": history[-1] if history else None, "history": history}

    def write() -> None:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
        temporary.replace(directory / LAST)

    with writing(directory / LAST, temporary):
        despite_absence(directory, write)


def read_last(directory: Path) -> list[str]:
    """Return the checkpoints of a directory, oldest first: as recorded, or by time if the record is unreadable."""
    try:
        last = directory / LAST
        history = json.loads(last.read_text())["history"] if last.is_file() else None
        if isinstance(history, list) and all(isinstance(name, str) and Path(name).name == name for name in history):
            return [name for name in history if (directory / name).exists()]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    files = [file for file in directory.glob("*.pt") if file.exists()]
    return [file.name for file in sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name))]


def newest(directory: Path, upto: str | None = None) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest intact checkpoint of a directory and its contents; damaged ones are skipped with a warning.

    Args:
        directory: the directory of the checkpoints.
        upto: the name of the newest one to consider; None for all.

    Raises:
        TrainyardError: `last.json` is not a file, and could not be written.
    """
    last = directory / LAST
    if last.exists() and not last.is_file():
        raise TrainyardError(
            f"{last} is not a file. Move or delete it, because the list of checkpoints is written to this path."
        )
    paths = list(_newest_first(directory))
    begin = 0 if upto is None else [path.name for path in paths].index(upto)
    for path in paths[begin:]:
        try:
            return path, load(path)
        except (DamagedCheckpointError, FileNotFoundError) as error:
            log.warning("Skipped a checkpoint that cannot be used: %s.", error)
    return None


def _newest_first(directory: Path) -> Iterator[Path]:
    noted = [directory / name for name in reversed(read_last(directory))]
    yield from noted
    best = directory / "best.pt"
    if best.exists() and best not in noted:
        yield best


def given(
    key: str, path: str | os.PathLike[str], reader: Callable[[Path], dict[str, Any]] = load
) -> tuple[Path, dict[str, Any]]:
    """Return a checkpoint that the user named.

    Args:
        key: the setting that names it.
        path: the path, as written by the user.
        reader: the function that reads it: `load`, or one that raises the same errors.

    Raises:
        ConfigError: the file is absent or damaged; the message names the nearest file.
    """
    file = Path(path)
    try:
        return file, reader(file)
    except FileNotFoundError:
        others = sorted(str(other) for other in file.parent.glob("*") if other.suffix in (".pt", file.suffix))
        folder = str(file.parent.absolute())
        hint = (
            f"Trainyard looked in {quoted(folder)}."
            if file.parent.is_dir()
            else f"The folder {quoted(folder)} does not exist."
        )
        raise ConfigError(key, str(path), "the path of a checkpoint that exists", options=others, hint=hint) from None
    except DamagedCheckpointError as error:
        raise ConfigError(
            key, str(path), "a complete checkpoint", hint=f"This checkpoint cannot be used: {error}."
        ) from None


class Writer:
    """Thread that writes checkpoints while training continues; a save waits for the previous one.

    Submitted data must not change afterwards: pass copies of live tensors.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, jobs: Iterable[Callable[[], None]]) -> None:
        """Run these jobs in order, after those submitted before."""
        self.wait()
        self._pending = self._pool.submit(_do, jobs)

    def wait(self) -> None:
        """Wait until all writes have finished; raise the error of the last write."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()


def at_once(sequences: Sequence[Sequence[Callable[[], None]]]) -> None:
    """Run several sequences of jobs at the same time, each in its order; raise the error of the first that fails."""
    if len(sequences) < 2:
        for jobs in sequences:
            _do(jobs)
        return
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="checkpoint") as pool:
        for _ in pool.map(_do, sequences):
            pass


def _do(jobs: Iterable[Callable[[], None]]) -> None:
    for job in jobs:
        job()
