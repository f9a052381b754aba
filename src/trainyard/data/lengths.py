"""Lengths of loaders: exact ones, and those that are only hints.

A loader that orders the samples itself knows the number of batches in every epoch. The `len()` of other loaders, such
as streams, is an estimate: an epoch ends when the loader yields no more batches.
"""

from __future__ import annotations

from typing import Any

from trainyard.data.base import Batch, Loader
from trainyard.errors import ConfigError, TrainyardError, counted

_UNSTATED = (TypeError, NotImplementedError, ConfigError)
"""Errors that `len()` raises if there is no length."""


def exact_length(loader: Loader) -> int | None:
    """Return the number of batches of every epoch; None if it is known only at the end of an epoch."""
    length: int | None = getattr(loader, "exact_length", None)
    return length


def length_hint(loader: Loader) -> int | None:
    """Return the number of batches in an epoch that a loader states; None if it states none.

    Only progress bars, and schedules that need a length, may depend on it.
    """
    sized: Any = loader
    try:
        length = len(sized)
    except _UNSTATED:
        return None
    return length if length > 0 else None


def samples_hint(loader: Loader) -> int | None:
    """Return the number of samples in an epoch that a loader states; None if it states none."""
    try:
        samples: int | None = getattr(loader, "num_samples", None)
    except _UNSTATED:
        return None
    return samples


def stated_size(loader: Loader) -> int | None:
    """Return the number of samples in a full batch; None if it is unknown."""
    given: Any = getattr(loader, "loader", loader)  # of a rank
    size: int | None = getattr(given, "stated_batch_size", loader.batch_size)
    return size


def first_batch(loader: Loader, split: str, epoch: int = 0) -> Batch:
    """Return the first batch of an epoch.

    Raises:
        TrainyardError: there is none.
    """
    for batch in loader.batches(epoch):
        return batch
    raise no_batches(split)


def no_batches(split: str, epoch: int | None = None) -> TrainyardError:
    """Return the error for data without batches.

    Args:
        split: its name, for the message.
        epoch: the epoch, counted from 0; the message names every epoch except the first.
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


def ended_early(read: int, start: int, key: str = "") -> TrainyardError:
    """Return the error for data that ends after `read` batches of an epoch, before batch `start` of a resumed run.

    The message begins with the key of the data, if there is one.
    """
    place = f"{key}: " if key else ""
    return TrainyardError(
        f"{place}The data ends after {counted(read, 'batch', 'batches')} of an epoch, but this run has already read "
        f"{start}: the data has changed. Resume with the original data."
    )


def of_total(count: int, total: int | None) -> str:
    """Return a count as `3/10`; as `3` if the total is unknown, or is an estimate that was exceeded."""
    return str(count) if total is None or count > total else f"{count}/{total}"
