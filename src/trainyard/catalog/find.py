"""Finding runs: all in a folder, or the one that a user means."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainyard.catalog.stored_run import StoredRun
from trainyard.errors import TrainyardError, counted, nearest, quoted
from trainyard.quoting import named
from trainyard.track import run_info
from trainyard.track.run_info import RunInfo

SWEEP = "manifest.jsonl"  # in the directory of a sweep, whose run.json describes the parent run
DEFAULT = ("outputs", "multirun")  # where Hydra puts runs
_SHORTEST = 4  # characters of an id; fewer are more likely a name
_SHOWN = 8
_NO_RUNS_BELOW = {"checkpoints", "mlruns", "mlartifacts", "node_modules"}


def default_folders() -> list[Path]:
    """Return the folders in which runs are searched: `outputs` and `multirun`, or the current folder if neither
    exists."""
    found = [Path(name) for name in DEFAULT if Path(name).is_dir()]
    return found or [Path()]


def find(folders: Sequence[Path]) -> list[StoredRun]:
    """Return the runs in these folders and their subfolders, in the order in which they were started.

    Directories whose `run.json` cannot be read are omitted.
    """
    runs = {}
    for folder in folders:
        for directory in directories(folder, run_info.FILE):
            if (directory / SWEEP).exists():
                continue
            try:
                runs[directory.resolve()] = StoredRun(directory, RunInfo.read(directory))
            except TrainyardError:
                continue
    return sorted(runs.values(), key=lambda run: (run.info.start_time, str(run.directory)))


def resolve(text: str, folders: Sequence[Path] | None = None) -> StoredRun:
    """Return the run that a directory, name or ID refers to.

    Args:
        text: the run's directory or a file in it, the start of its ID, its name, or the name of its directory.
        folders: the folders to search; None for `default_folders`.

    Raises:
        TrainyardError: no run matches, or several runs match.
    """
    path = Path(text)
    if path.exists():
        for directory in (path, *path.absolute().parents[:3]):
            if (directory / run_info.FILE).is_file() and not (directory / SWEEP).exists():
                return StoredRun(directory, RunInfo.read(directory))
        if (path / SWEEP).exists():
            raise TrainyardError(f"{text} is the directory of a sweep. Give the directory of one of its jobs.")
        raise TrainyardError(
            f"{text} is neither the directory of a run (it has no {run_info.FILE}) nor a file in such a directory."
        )
    folders = default_folders() if folders is None else folders
    runs = find(folders)
    where = named(folders)
    found = [run for run in runs if _is_meant(run, text)]
    if len(found) == 1:
        return found[0]
    if not found:
        names = [name for run in runs for name in (run.info.name, run.directory.name)]
        close = nearest(text, names)
        hint = f" Did you mean {quoted(close)}?" if close else " `trainyard runs` lists the runs."
        if not runs:
            hint = " Repeat the command in the folder of the project, or give the directory of the run."
        if len(text) < _SHORTEST and any(run.info.id.startswith(text) for run in runs):
            hint = f" The start of an ID needs at least {_SHORTEST} characters."
        searched = f"Searched: {counted(len(runs), 'run')} in {where}."
        raise TrainyardError(f"No run has the name or ID {quoted(text)}. {searched}{hint}")
    shown = "".join(f"\n    {run.info.id[:_SHOWN]}  {run.info.name}  {run.directory}" for run in found[:_SHOWN])
    more = f"\n    and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    what = f"{quoted(text)} matches {len(found)} runs in {where}"
    differ = len({run.info.id for run in found}) == len(found)  # copies of a directory have one ID
    give = "Give the ID or the directory" if differ else "Give the directory"
    raise TrainyardError(f"{what}. {give} of one of them:{shown}{more}")


def _is_meant(run: StoredRun, text: str) -> bool:
    of_id = len(text) >= _SHORTEST and run.info.id.startswith(text)
    return of_id or text in (run.info.name, run.directory.name)


def directories(folder: Path, file: str) -> Iterator[Path]:
    """Yield the directories in a folder, at any depth, that contain a file with this name."""
    for root, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if name[:1] != "." and name not in _NO_RUNS_BELOW)
        if file in files:
            yield Path(root)
