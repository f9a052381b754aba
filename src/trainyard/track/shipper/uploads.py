"""Uploads of runs' files into MLflow's artifact folders."""

from __future__ import annotations

import json
import posixpath
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import verify_artifact_path
from mlflow.utils.file_utils import local_file_uri_to_path

from trainyard.track.shipper.sanitize import first_line

# Written once and then replaced, never changed: they can be shared with the run's directory.
_LINKED = ".pt"


class LeftOutError(Exception):
    """An item cannot be shipped, even after retries. It is skipped, and the message gives the reason."""


class MissingError(LeftOutError):
    """The file of an item no longer exists."""


class Artifacts:
    """The artifact folder of one run.

    A folder on this machine is written directly, in a tenth of the time that MLflow's client takes. Checkpoints become
    hard links if the file system allows this.

    Args:
        uri: the URI of the folder in MLflow.
    """

    def __init__(self, client: MlflowClient, run_id: str, uri: str) -> None:
        self._client = client
        self._run_id = run_id
        local = urlsplit(uri).scheme in ("", "file")
        self._folder = Path(local_file_uri_to_path(uri)) if local else None  # type: ignore[no-untyped-call]

    def add(self, path: Path, to: str) -> None:
        """Upload a file or folder; raise MissingError if it is missing, and LeftOutError if it is refused."""
        try:
            if not path.exists():
                raise MissingError("the file no longer exists")
            _check(to)
            if self._folder is not None:
                _place(path, self._folder / to)
            elif path.is_dir():
                self._client.log_artifacts(self._run_id, str(path), posixpath.join(to, path.name))
            else:
                self._client.log_artifact(self._run_id, str(path), to or None)
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise LeftOutError(first_line(error)) from error
            raise
        except OSError as error:
            # These answers of a web server mean that it will never accept the file (413: it is too large).
            answer = getattr(getattr(error, "response", None), "status_code", 0)
            if 400 <= answer < 500 and answer not in (401, 403, 408, 429):
                raise LeftOutError(str(error)) from error
            if isinstance(error, PermissionError) and str(error.filename) == str(path):
                raise LeftOutError(str(error)) from error
            raise

    def array(self, name: str, content: dict[str, Any]) -> None:
        """Write `arrays/<name>.json`. MLflow must accept the name, and the numbers in `content` must be finite."""
        text, to = json.dumps(content, allow_nan=False), f"arrays/{name}.json"
        _check(to)
        if self._folder is None:
            self._client.log_text(self._run_id, text, to)
            return
        target = self._folder / to
        target.parent.mkdir(parents=True, exist_ok=True)
        with _written(target) as part:
            part.write_text(text, encoding="utf-8")


def _check(to: str) -> None:
    try:
        verify_artifact_path(to)  # type: ignore[no-untyped-call]
    except MlflowException as error:
        raise LeftOutError(first_line(error)) from error


def _place(path: Path, folder: Path) -> None:
    """Copy a file or folder into another, which is created."""
    target = folder / path.name
    if path.is_dir():
        for inner in path.iterdir():
            _place(inner, target)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _written(target) as part:
        if not (path.suffix == _LINKED and _link(path, part)):
            shutil.copyfile(path, part)


@contextmanager
def _written(target: Path) -> Iterator[Path]:
    """Yield the file to write; a reader of `target` sees either the old file or the new file, never a part."""
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)  # left by a shipper that was killed; it may be a link, which must not be written to
    yield part
    part.replace(target)
    part.unlink(missing_ok=True)  # rename(2) leaves it if both are links to one file


def _link(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another file system, or one without hard links
        return False
    return True
