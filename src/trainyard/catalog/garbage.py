"""Files of runs that are no longer needed: old checkpoints, and temporary files of killed processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainyard.catalog.stored_run import StoredRun

BEST = "best.pt"
BEST_OF = "best_"
"""Start of the names of the best checkpoints by other metrics."""


def garbage(run: StoredRun) -> list[Path]:
    """Return the files and folders that a run no longer needs; nothing while it trains.

    - Checkpoints. Each run keeps `best.pt` and the best ones by other metrics (`best_accuracy.pt`). A run that has not
      finished or has no `best.pt` also keeps its newest other checkpoint, with which it can be resumed.
    - Temporary files of a process that was killed while it wrote a checkpoint.
    """
    if run.state == "running":
        return []
    saved = sorted(run.checkpoints, key=lambda path: (path.stat().st_mtime_ns, path.name))
    regular = [path for path in saved if path.name != BEST and not path.name.startswith(BEST_OF)]
    has_best = any(path.name == BEST for path in saved)
    kept = set(regular[-1:] if run.state != "finished" or not has_best else [])
    return [*(path for path in regular if path not in kept), *_temporary(run)]


def freed(paths: Iterable[Path]) -> int:
    """Return the number of bytes that the removal of these files and folders frees; a file with another hard link frees
    none."""
    links: dict[tuple[int, int], int] = {}
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    for file in _files(paths):
        stat = file.lstat()
        inode = (stat.st_dev, stat.st_ino)
        links[inode] = links.get(inode, 0) + 1
        sizes[inode] = stat.st_nlink, stat.st_size
    return sum(size for inode, (count, size) in sizes.items() if links[inode] >= count)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in _files([path]))


def _temporary(run: StoredRun) -> list[Path]:
    folder = run.directory / "checkpoints"
    return sorted(path for path in folder.glob(".*") if path.suffix in (".tmp", ".link", ".old"))


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            for root, _, names in os.walk(path):
                yield from (Path(root, name) for name in names)
        else:
            yield path
