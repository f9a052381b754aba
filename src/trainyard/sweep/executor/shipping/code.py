"""Code that a sweep needs on nodes that do not have it: the folders of `sys.path` that do not belong to Python."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from trainyard.errors import TrainyardError

LIMIT = 200 << 20
"""Maximum number of bytes of code, before it is packed."""
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the same code makes the same archive, which Ray sends once
_NO_CODE = ("__pycache__", "multirun", "outputs")
_PACKAGES = ("site-packages", "dist-packages")


def code_folders(path: Sequence[str] | None = None) -> list[str]:
    """Return the folders of `sys.path` with code of the user's own, without those inside others of them."""
    python = [*map(Path, {sys.prefix, sys.base_prefix, sys.exec_prefix}), *map(Path, site.getsitepackages())]
    found: list[Path] = []
    for entry in sys.path if path is None else path:
        folder = Path(entry or ".").absolute()
        is_python = any(folder.is_relative_to(each) for each in python) or any(it in folder.parts for it in _PACKAGES)
        if folder.is_dir() and not is_python and folder != Path("/") and folder not in found:
            found.append(folder)
    return [str(one) for one in found if not any(one != other and one.is_relative_to(other) for other in found)]


def pack(folders: Sequence[str], archive: Path, without: Iterable[Path] = ()) -> None:
    """Write an archive with the code in some folders, each below its number.

    In a git repository, these are the files that git knows or would add; elsewhere, all files except hidden ones and
    environments.

    Args:
        folders: the folders.
        archive: the archive's path.
        without: folders to omit.

    Raises:
        TrainyardError: there is too much code.
    """
    left_out, total = [each.absolute() for each in without], 0
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for index, folder in enumerate(folders):
            file.writestr(zipfile.ZipInfo(f"{index}/", _LONG_AGO), b"")
            for path in sorted(_files(Path(folder))):
                if any(path.is_relative_to(each) for each in left_out):
                    continue
                total += path.stat().st_size
                if total > LIMIT:
                    raise TrainyardError(
                        f"The files in {', '.join(folders)} are larger than {LIMIT >> 20} MiB in total, not counting "
                        "files that git ignores, so they cannot be sent to the nodes as code. Move data out of these "
                        "folders or, in a git repository, list uncommitted data in .gitignore."
                    )
                member = zipfile.ZipInfo(f"{index}/{path.relative_to(folder)}", _LONG_AGO)
                member.external_attr = (path.stat().st_mode & 0o777) << 16
                file.writestr(member, path.read_bytes(), zipfile.ZIP_DEFLATED)


def _files(folder: Path) -> Iterator[Path]:
    known = _known_to_git(folder)
    for path in _walked(folder) if known is None else known:
        inner = path.relative_to(folder).parts
        if inner[0] not in _NO_CODE and "__pycache__" not in inner and path.is_file():
            yield path


def _known_to_git(folder: Path) -> list[Path] | None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    if done.returncode or not done.stdout:
        return None
    names = dict.fromkeys(done.stdout.split(b"\0"))  # one that a merge has not settled is listed several times
    return [folder / os.fsdecode(name) for name in names if name]


def _walked(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = [
            each
            for each in folders
            if not each.startswith(".") and each not in _PACKAGES and not (here / each / "pyvenv.cfg").exists()
        ]
        yield from (here / each for each in files if not each.startswith("."))
