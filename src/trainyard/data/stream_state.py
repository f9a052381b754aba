"""State of a stream: its position according to its `state_dict`, so that a resumed run does not read earlier
samples."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from trainyard.data.base import Batch
from trainyard.data.seeding import set_epoch
from trainyard.rng_state import cpu_states_kept

log = logging.getLogger(__name__)


class FollowedStream(IterableDataset[Any]):
    """An iterable data set that is read in this process, and whether it has reached its end.

    A loader reaches the end while it fills the last batch, and the data set may then be ready for the next epoch. The
    state of the data set alone does not show whether this batch is still pending.
    """

    def __init__(self, dataset: IterableDataset[Any]) -> None:
        self.dataset = dataset
        self.ended = False

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch to the data set."""
        set_epoch(self.dataset, epoch)

    def __iter__(self) -> Iterator[Any]:
        self.ended = False
        return chain(self.dataset, self._end())

    def _end(self) -> Iterator[Any]:
        self.ended = True
        yield from ()


class StreamState:
    """State of a loader's stream, by the protocol of torchdata's `StatefulDataLoader`.

    It is the state of the loader if its class has `state_dict` and `load_state_dict`; otherwise, the state of an
    `IterableDataset` with these methods that is read in this process. (Workers have copies of a data set, whose states
    are unknown here.)

    Args:
        loader: the loader that is iterated; its data set, if that has a state, is a `FollowedStream`.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._stream = loader.dataset if isinstance(loader.dataset, FollowedStream) else None
        dataset = loader.dataset if self._stream is None else self._stream.dataset
        own = isinstance(dataset, IterableDataset) and not loader.num_workers and has_state(dataset)
        self._dataset: Any = dataset if own else None
        self._part: Any = loader if has_state(loader) else None if self._stream is None else dataset
        self._at_begin: Any = None
        self._fits: bool | None = None

    def __bool__(self) -> bool:
        """Return whether the stream has a state."""
        return self._part is not None

    def begin(self) -> None:
        """Prepare for an iteration.

        A data set that is read in this process and was not read to its end (for example, to inspect the first batch)
        returns to its previous position.
        """
        if self._dataset is None:
            return
        if self._at_begin is None:
            self._at_begin = copy.deepcopy(self._dataset.state_dict())
        else:
            self._dataset.load_state_dict(copy.deepcopy(self._at_begin))

    def load(self, state: Mapping[str, Any]) -> bool:
        """Restore a state that `take` returned; return whether the stream had reached its end."""
        self._part.load_state_dict(copy.deepcopy(state["stream"]))
        ended = bool(state["ended"])
        if self._stream is not None:
            self._stream.ended = ended  # until it is iterated
        return ended

    def followed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches of an iteration, and record its end: the next epoch starts where this one ended."""
        yield from batches
        self._at_begin = None

    def take(self) -> dict[str, Any] | None:
        """Return a copy of the state after the batches so far; None if a checkpoint cannot contain it."""
        if self._part is None or self._fits is False:
            return None
        with cpu_states_kept():
            state = copy.deepcopy(self._part.state_dict())
        if self._fits is None:
            self._fits = _fits(state)
            if not self._fits:
                log.warning(
                    "The state of %s contains objects other than tensors and plain values, so it cannot be "
                    "saved in a checkpoint. A resumed run reads and drops the batches before its position.",
                    type(self._part).__name__,
                )
                return None
        return {"stream": state, "ended": self._stream is not None and self._stream.ended}


def has_state(part: object) -> bool:
    """Return whether an object can return its state and restore it."""
    return all(callable(getattr(part, name, None)) for name in ("state_dict", "load_state_dict"))


def _fits(state: Any) -> bool:
    """Return whether a checkpoint, which is opened without running code, can contain this value."""
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, TypeError, AttributeError):
        return False
    return True
