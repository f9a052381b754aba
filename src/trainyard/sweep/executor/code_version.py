"""Version of the code that a process runs, to compare the head's and an agent's."""

from __future__ import annotations

import importlib.metadata
import subprocess
from contextlib import suppress
from pathlib import Path


def code_version() -> str:
    """Return the versions of Trainyard and of the project in the current folder, for people: commits where there are.

    Changes that are not committed are not seen.
    """
    own = Path(__file__).resolve().parents[3]
    version = _commit(own)
    if version is None:
        with suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version("trainyard")
    project = _commit(Path.cwd())
    told = f"trainyard {version}"
    return told if project in (None, version) else f"{told}, project {project}"


def _commit(folder: Path) -> str | None:
    """Return the commit of the repository that a folder is in; None if it is in none."""
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=10,
            check=True,
        )
        return told.stdout.strip()
    return None
