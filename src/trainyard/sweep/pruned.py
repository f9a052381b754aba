"""Actions after jobs are pruned or have fulfilled a request."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from trainyard.files import remove
from trainyard.sweep.events import END_OF_WISH, Ended, Paused, Wish

Last = Mapping[int, tuple[int, float]]
"""The last report of each job: the position, and the value."""


def remove_regular(directory: Path) -> None:
    """Remove the checkpoints from which a job would continue; those of its best values are kept.

    Args:
        directory: the job's directory. Nothing happens where it has no checkpoints.
    """
    folder = directory / "checkpoints"
    for file in [folder / "last.json", *folder.glob("epoch_*.pt"), *folder.glob("iter_*.pt")]:
        with suppress(OSError):
            remove(file)


def of_pruned(event: Ended | Paused, last: Last) -> Ended | Paused:
    """Return an event; the end of a pruned job gets its last report as its objective."""
    if not isinstance(event, Ended) or event.state != "pruned":
        return event
    at, value = last.get(event.num, (0, None))
    return replace(event, objective=value, error=event.error or f"pruned at rung {at}")


def fulfilled(wishes: Mapping[int, Wish], last: Last, why: str) -> list[Ended | Paused]:
    """Return the ends of jobs that had been asked to end when the head was killed, as fulfilled requests.

    Args:
        wishes: the requests to jobs, by number.
        last: the last reports of jobs.
        why: the reason for jobs that a user has stopped.
    """
    found: list[Ended | Paused] = []
    for num, wish in wishes.items():
        if wish == "pause":
            found.append(Paused(num, by_hand=True))
        else:
            found.append(of_pruned(Ended(num, END_OF_WISH[wish], error=why if wish == "stop" else None), last))
    return found
