"""Version of the code that a process runs, to compare the head's and an agent's."""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class CodeVersion:
    """Version of Trainyard and of the project in a folder.

    Attributes:
        told: their versions for users: commits, if available.
        digest: the digest of their Python files on disk; for a project outside git, only of Trainyard's files.
    """

    told: str
    digest: str

    @classmethod
    def now(cls) -> CodeVersion:
        """Return the version of the code on disk, with the project in the current folder."""
        return cls(_told(), _digest())

    def matches(self, other: CodeVersion) -> bool:
        """Return whether the code is the same: its commits, or after a commit the files in them.

        Uncommitted changes are not detected if the commits are the same.
        """
        return self.told == other.told or self.digest == other.digest


def _told() -> str:
    version = _commit(_PACKAGE.parent)
    if version is None:
        with suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version("trainyard")
    project = _commit(Path.cwd())
    told = f"trainyard {version}"
    return told if project in (None, version) else f"{told}, project {project}"


def _digest() -> str:
    digest = hashlib.sha256()
    for root, names in ((_PACKAGE, _found(_PACKAGE)), (Path.cwd(), _listed(Path.cwd()))):
        for name in sorted(names):
            with suppress(OSError):
                content = (root / name).read_bytes()
                digest.update(f"{name} {len(content)} ".encode())
                digest.update(content)
    return digest.hexdigest()


def _found(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for path in folder.rglob("*.py"))


def _listed(folder: Path) -> list[str]:
    """Return the Python files in a folder that git knows or does not ignore; none without git."""
    names = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.py")
    return [name for name in (names or "").split("\0") if name]


def _commit(folder: Path) -> str | None:
    """Return the commit of the repository of a folder; None if there is none."""
    told = _git(folder, "rev-parse", "--short=12", "HEAD")
    return None if told is None else told.strip()


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints; None if it fails."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="surrogateescape",
            timeout=10,
            check=True,
        ).stdout
    return None
