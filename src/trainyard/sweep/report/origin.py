"""Origin of a sweep's numbers: the time, the code and the command, and the place in MLflow."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from trainyard.errors import TrainyardError
from trainyard.quoting import override, shell_path
from trainyard.redaction import redact
from trainyard.sweep.records import application_of, is_record
from trainyard.sweep.report.rows import JobRow
from trainyard.sweep.steering import MANIFEST
from trainyard.track.run_info import RunInfo
from trainyard.track.shipped import run_page

_LOOKED_AT = 20  # jobs in which a run.json is looked for
_FIRST = 20  # lines of the manifest


@dataclass(frozen=True)
class Origin:
    """Origin of a sweep's numbers; unknown values are empty.

    Attributes:
        started: the time of the first start, in Unix seconds.
        commit: the commit, and whether there were uncommitted changes.
        command: the command, without credentials.
        page: the address of the sweep's run in MLflow.
        server: the command that serves that address; empty if it is a server already.
        pages: the addresses of the jobs' runs in MLflow, by the jobs' numbers.
        uri: the tracking URI, without credentials.
    """

    started: float | None = None
    commit: str = ""
    command: str = ""
    page: str = ""
    server: str = ""
    pages: dict[int, str] = field(default_factory=dict)
    uri: str = ""

    @classmethod
    def of(cls, directory: Path, rows: Sequence[JobRow]) -> Origin:
        """Return the origin of the sweep in a directory.

        Args:
            directory: the directory of the sweep.
            rows: the jobs whose pages are requested.
        """
        info = next(_records([directory, *(row.directory for row in rows[:_LOOKED_AT])]), None)
        facts = {} if info is None else info.facts
        commit = facts.get("git.commit", "")
        if commit and facts.get("git.dirty") == "true":
            commit += ", with uncommitted changes"
        uri = (None if info is None else info.uri) or ""
        server = f"mlflow ui --backend-store-uri {shell_path(uri)}" if uri.startswith("sqlite") else ""
        origin = cls(_started(directory), commit, _command(directory), server=server, uri=uri)
        return origin.with_pages(directory, rows)

    def with_pages(self, directory: Path, rows: Sequence[JobRow]) -> Origin:
        """Return this origin with the addresses of all runs that MLflow has received so far.

        Args:
            directory: the directory of the sweep.
            rows: the jobs whose pages are requested.
        """
        if not self.uri:
            return self
        pages = {row.num: found for row in rows if (found := run_page(row.directory, self.uri))}
        return replace(self, page=run_page(directory, self.uri), pages=pages)


def _records(directories: Iterable[Path]) -> Iterator[RunInfo]:
    for directory in directories:
        with suppress(TrainyardError):
            yield RunInfo.read(directory)


def _started(directory: Path) -> float | None:
    """Return when the sweep was first started, from the first lines of its manifest."""
    with suppress(OSError), (directory / MANIFEST).open("rb") as file:
        for line in islice(file, _FIRST):
            with suppress(ValueError):
                record = json.loads(line)
                if is_record(record) and record["kind"] == "began":
                    return float(record["time"])
    return None


def _command(directory: Path) -> str:
    """Return the command that last started the sweep, from its manifest and its multirun.yaml."""
    application = application_of(directory / MANIFEST)
    record = directory / "multirun.yaml"
    if application is None or not record.is_file():
        return ""
    from omegaconf import OmegaConf

    from trainyard.sweep.continuing import arguments

    try:
        hydra = OmegaConf.load(record).hydra
        if hydra.job.config_name == hydra.job.name:  # the program's own
            hydra.job.config_name = None
        place = override("hydra.sweep.dir", os.path.relpath(directory, hydra.runtime.cwd))
        given = [*arguments(hydra, application), place]
        script = ["-m", application.module] if application.module else [_short(application.file, hydra.runtime.cwd)]
    except Exception:  # another program's file
        return ""
    return redact(shlex.join(["python", *script, *given]))


def _short(path: str, folder: str) -> str:
    """Return a path relative to the folder of the command, if it is inside this folder."""
    near = os.path.relpath(path, folder)
    return path if near.startswith("..") else near
