"""Position of a job in its sweep, as set by the process that launched it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SweepPosition:
    """Position of a job in its sweep.

    Args:
        parent: the id of the sweep's own run (`RunInfo.id`); None where the sweep is not tracked.
        varying: the keys that differ between the sweep's jobs: these, and the group choices, are a job's params.
        name: the run's name, made of the varying keys.
    """

    parent: str | None
    varying: tuple[str, ...]
    name: str
