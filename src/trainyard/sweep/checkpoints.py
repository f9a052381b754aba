"""Checkpoints of jobs that are pruned."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def remove_regular(directory: Path) -> None:
    """Remove the checkpoints that a job would go on from; those of its best values stay.

    Args:
        directory: the job's directory. Nothing happens where it has no checkpoints.
    """
    folder = directory / "checkpoints"
    for file in [folder / "last.json", *folder.glob("epoch_*.pt"), *folder.glob("iter_*.pt")]:
        with suppress(OSError):
            file.unlink()
