"""What follows when jobs are pruned, or have done what they were asked."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from trainyard.sweep.events import END_OF_WISH, Ended, Paused, Wish

Last = Mapping[int, tuple[int, float]]
"""What each job has reported last: the place, and the value."""


def remove_regular(directory: Path) -> None:
    """Remove the checkpoints that a job would go on from; those of its best values stay.

    Args:
        directory: the job's directory. Nothing happens where it has no checkpoints.
    """
    folder = directory / "checkpoints"
    for file in [folder / "last.json", *folder.glob("epoch_*.pt"), *folder.glob("iter_*.pt")]:
        with suppress(OSError):
            file.unlink()


def of_pruned(event: Ended | Paused, last: Last) -> Ended | Paused:
    """Return an event; the end of a job that is pruned with what it has reported last as its objective."""
    if not isinstance(event, Ended) or event.state != "pruned":
        return event
    at, value = last.get(event.num, (0, None))
    return replace(event, objective=value, error=event.error or f"pruned at {at}")


def fulfilled(wishes: Mapping[int, Wish], last: Last, why: str) -> list[Ended | Paused]:
    """Return the ends of jobs that were asked to end when the head was killed: what they were asked has come true.

    Args:
        wishes: what they were asked, by number.
        last: what jobs have reported last.
        why: the reason of those that people have stopped.
    """
    found: list[Ended | Paused] = []
    for num, wish in wishes.items():
        if wish == "pause":
            found.append(Paused(num))
        else:
            found.append(of_pruned(Ended(num, END_OF_WISH[wish], error=why if wish == "stop" else None), last))
    return found
