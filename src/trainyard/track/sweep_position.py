"""A job's position in its sweep, as the process that launched it tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SweepPosition:
    """A job's position in its sweep.

    Args:
        parent: the id of the sweep's own run (`RunInfo.id`); None where the sweep is not tracked.
        varying: the keys that differ between the sweep's jobs: these, and the group choices, are a job's params.
        name: the run's name, made of what varies.
    """

    parent: str | None
    varying: tuple[str, ...]
    name: str
