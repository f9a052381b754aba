"""Copies of a run's metrics for viewers other than MLflow, from the same journal: TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from trainyard.track import journal
from trainyard.track.run_info import RunInfo, write_json
from trainyard.track.shipped import SYNC, checksum_before

FILE = "copies.json"


@dataclass(frozen=True)
class Position:
    """Position up to which a copy is complete.

    Args:
        offset: the number of bytes of the journal that the copy contains.
        tail: a checksum of the last of these bytes, by which a truncated or replaced journal is recognized.
        size: the size of the copy's file in bytes, if the copy is a file that grows.
    """

    offset: int = 0
    tail: int = 0
    size: int = 0


Copy = Callable[[Path, RunInfo, Position], Position]
"""Updates the copy in a run's directory from a position to the end of the journal, and returns the new position."""


class Copies:
    """The copies that are requested in the `run.json` of a run.

    Each step updates a copy to the end of the journal. The position is written after the copy. Therefore, the next
    process repeats what a killed process had started, which does not change the result.

    Args:
        work_dir: the run's directory.
        info: the record of the run.
        log: a function that is called with messages about failures.
    """

    def __init__(self, work_dir: Path, info: RunInfo, log: Callable[[str], None]) -> None:
        self.work_dir, self.info, self.log = work_dir, info, log
        self._failed: set[str] = set()

    def step(self, ended: bool) -> None:
        """Update the copies to the end of the journal; `ended`: no process writes the journal any more."""
        for name in self.info.copies:
            kind = name.partition("=")[0]
            if name in self._failed or (kind == "wandb" and not ended):
                continue
            try:
                self._advance(kind)
            except Exception as error:  # of another library, or of the disk: MLflow has the run all the same
                self._failed.add(name)
                self.log(f"{kind}: {type(error).__name__}: {error}")

    def _advance(self, kind: str) -> None:
        path = self.work_dir / journal.FILE
        positions = self._read()
        position = positions.get(kind, Position())
        with suppress(FileNotFoundError):
            if position.offset == path.stat().st_size and self._there(kind):
                return
        if position.offset and (checksum_before(path, position.offset) != position.tail or not self._there(kind)):
            position = Position()
        now = _copy(kind)(self.work_dir, self.info, position)
        if now != position:
            positions[kind] = now
            write_json(self.work_dir / FILE, {name: asdict(each) for name, each in positions.items()}, SYNC)

    def _there(self, kind: str) -> bool:
        return (self.work_dir / kind).is_dir()

    def _read(self) -> dict[str, Position]:
        with suppress(OSError, ValueError, TypeError, AttributeError):
            return {kind: Position(**each) for kind, each in json.loads((self.work_dir / FILE).read_bytes()).items()}
        return {}


def _copy(kind: str) -> Copy:
    """Return the function that creates a copy; its library is imported only here."""
    if kind == "tensorboard":
        from trainyard.track.shipper.tensorboard import copy
    else:
        from trainyard.track.shipper.wandb import copy
    return copy
