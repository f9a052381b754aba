"""Lengths of loaders: exact ones, and those that are only hints.

A loader that orders the samples itself knows how many batches every epoch has. What any other states by `len()`, a
stream above all, is an estimate: an epoch of it has ended when it yields no more batches.
"""

from __future__ import annotations

from typing import Any

from trainyard.data.base import Batch, Loader
from trainyard.errors import ConfigError, TrainyardError

_UNSTATED = (TypeError, NotImplementedError, ConfigError)
"""What `len()` raises where there is no length."""


def exact_length(loader: Loader) -> int | None:
    """Return the number of batches of every epoch; None where it is known only when an epoch has ended."""
    length: int | None = getattr(loader, "exact_length", None)
    return length


def length_hint(loader: Loader) -> int | None:
    """Return the number of batches in an epoch that a loader states; None where it states none.

    It is for progress bars, and for schedules that need one. Nothing else may depend on it.
    """
    sized: Any = loader
    try:
        length = len(sized)
    except _UNSTATED:
        return None
    return length if length > 0 else None


def samples_hint(loader: Loader) -> int | None:
    """Return the number of samples in an epoch that a loader states; None where it states none."""
    try:
        samples: int | None = getattr(loader, "num_samples", None)
    except _UNSTATED:
        return None
    return samples


def first_batch(loader: Loader, split: str, epoch: int = 0) -> Batch:
    """Return the first batch of an epoch.

    Raises:
        TrainyardError: there is none.
    """
    for batch in loader.batches(epoch):
        return batch
    raise no_batches(split)


def no_batches(split: str, epoch: int | None = None) -> TrainyardError:
    """Return the error for data that yield nothing.

    Args:
        split: its name, for the message.
        epoch: the epoch, counted from 0, if it is not the first that counts.
    """
    when = f" in epoch {epoch + 1}" if epoch else ""
    stream = (
        "A stream must restart each time it is iterated. A stream that can be read only once has no more batches "
        "afterwards."
    )
    empty = "The data set is empty, or drop_last drops every batch (each worker drops its own last batch)."
    leave = "" if split == "train" else f" {split!r} is optional: omit the split if you have no data for it."
    why = stream if epoch else f"{empty} {stream}{leave}"
    return TrainyardError(f"data: {split!r} has no batches{when}. {why}")


def of_total(count: int, total: int | None) -> str:
    """Return a count as `3/10`; as `3` if the total is unknown, or was an estimate that is exceeded."""
    return str(count) if total is None or count > total else f"{count}/{total}"
