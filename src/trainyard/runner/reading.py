"""Reading of the training data: the batches of an epoch, from the position of the run on."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from trainyard import rng_state
from trainyard.data import Batch, Loader
from trainyard.data.lengths import exact_length, first_batch, no_batches
from trainyard.distributed import Strategy
from trainyard.step.step import Step

HINT = " (resume_override=[data.batch_size] continues with another batch size)"


class TrainingReader:
    """Reads the training data for a loop, and provides the state from which a resumed run continues reading.

    The number of batches in an epoch is often known only at its end. A step that accumulates gradients weights each
    batch by the size of its group, so all batches of a group are read before the first of them is used. Reading draws
    from the random generators: a run that is resumed within a group therefore reads the entire group again, with the
    state of the generators before it.

    Args:
        loader: the loader of the training data.
        strategy: the strategy, which ends the epoch of all ranks together.

    Attributes:
        total: the number of batches in the epoch, as far as the step needs it: it is exact if the group of the current
            batch is the last one.
    """

    def __init__(self, loader: Loader, strategy: Strategy) -> None:
        self.loader: Any = loader
        self.total = sys.maxsize
        self._strategy = strategy
        self._resumed: dict[str, Any] | None = None
        self._group: dict[str, Any] | None = None
        self._ahead: _OpenedAhead | None = None

    def look_ahead(self) -> Batch:
        """Return the first batch of the first epoch, which `batches` still yields.

        A stream without a state is opened only once: `batches` continues the iteration that is started here. Call this
        with the generators with which the training starts.

        Raises:
            TrainyardError: there is no batch.
        """
        if self._ahead is not None:
            return self._ahead.first
        if exact_length(self.loader) is not None:
            return first_batch(self.loader, "train")
        state, before = self._stream_state(), rng_state.cpu_states()
        batches = self.loader.batches(0)
        for first in batches:
            after = rng_state.cpu_states()
            self._ahead = _OpenedAhead(self.loader, batches, first, before, after, _turn(self.loader), state)
            return first
        raise no_batches("train")

    def batches(self, epoch: int, start: int, group: int = 1, step: Step | None = None) -> Iterator[Batch]:
        """Yield the batches of `epoch` from number `start` on.

        Args:
            epoch: the epoch, from 0.
            start: the number of completed batches of the epoch.
            group: batches per optimizer step, if groups end with the epoch.
            step: the step that trains on them, which can choose their form (`Step.batches_of`).
        """
        resumed, self._resumed, self._group = self._resumed, None, None
        if resumed is not None and resumed["place"][0] != epoch:
            resumed = None
        if (exact := exact_length(self.loader)) is not None:
            self.total = exact
            batches: Iterator[Batch] = (
                self.loader.batches(epoch, start) if step is None else step.batches_of(self.loader, epoch, start)
            )
            return batches
        self.total = sys.maxsize
        if group == 1:
            at_start = resumed is not None and resumed["place"][1] == start
            return self._opened(epoch, start, resumed["stream"] if resumed is not None and at_start else None)
        return self._in_groups(epoch, start, group, resumed)

    def state_dict(self, epoch: int, done: int) -> dict[str, Any]:
        """Return the state that a resumed run needs to continue reading at the position (`epoch`, `done`): tensors and
        plain values."""
        state = {"batches": exact_length(self.loader), "batch_size": self.loader.batch_size}
        if state["batches"] is not None:
            return state
        if self._resumed is not None:  # nothing has been read since: the run was at its end
            return state | {key: self._resumed[key] for key in ("place", "random", "stream")}
        if self._group is not None and self._group["place"][0] == epoch and done:
            return state | self._group
        return state | {"place": [epoch, done], "random": None, "stream": self._stream_state()}

    def load_state_dict(self, state: dict[str, Any], done: int) -> None:
        """Let the next `batches` continue reading from a result of `state_dict`; `done` is the number of
        completed batches in its position.

        Raises:
            ValueError: the batches of the data have changed.
        """
        length, size = exact_length(self.loader), self.loader.batch_size
        saved = state.get("batch_size", size)
        hint = HINT if saved not in (None, size) and "place" not in state else ""
        if None not in (state["batches"], length) and state["batches"] != length:
            raise ValueError(f"it has {state['batches']} batches per epoch, but this run has {length}{hint}")
        if done and saved != size:
            raise ValueError(
                f"it was saved within an epoch with batch size {saved}, but the batch size is now {size}{hint}"
            )
        self._resumed = state if "place" in state else None

    def _opened(self, epoch: int, start: int, stream: Any = None) -> Iterator[Batch]:
        loader = self.loader
        ahead, self._ahead = self._ahead, None
        if stream is not None:
            batches = loader.batches(epoch, start, stream)
        elif ahead is not None and (epoch, start) == (0, 0):
            batches = ahead.batches()
        else:
            batches = loader.batches(epoch, start)
        return self._strategy.together(batches)

    def _stream_state(self) -> Any:
        if self._ahead is not None:
            return self._ahead.state
        take = getattr(self.loader, "stream_state", None)
        return None if take is None else take()

    def _in_groups(self, epoch: int, start: int, group: int, resumed: dict[str, Any] | None) -> Iterator[Batch]:
        """Yield batches of groups that are read ahead."""
        first = start - start % group
        if resumed is not None and resumed["place"][1] <= start:
            first = resumed["place"][1]
        else:
            resumed = None
        now = rng_state.cpu_states() if start else None
        stream = resumed["stream"] if resumed is not None else None if first else self._stream_state()
        batches = self._opened(epoch, first, None if resumed is None else resumed["stream"])
        if resumed is not None and resumed["random"] is not None:
            rng_state.set_cpu_states(rng_state.from_plain(resumed["random"]))
        weighed = hasattr(self.loader, "weight")
        complete = True
        while complete:
            generators = rng_state.as_plain(rng_state.cpu_states())
            self._group = {"place": [epoch, first], "random": generators, "stream": stream or self._stream_state()}
            stream = None
            wanted = group - first % group
            held = deque(
                (batch, (self.loader.weight, self.loader.size) if weighed else None)
                for batch in islice(batches, wanted)
            )
            if now is not None:  # what was drawn for batches of a resumed group was drawn before the checkpoint
                rng_state.set_cpu_states(now)
                now = None
            complete = len(held) == wanted
            self.total = first + len(held)
            for number in range(first, self.total):
                batch, share = held.popleft()
                if number >= start:
                    if share is not None:
                        self.loader.weight, self.loader.size = share
                    yield batch
            first = self.total


@dataclass(frozen=True)
class _OpenedAhead:
    """Epoch of a loader whose first batch was read before the training.

    Attributes:
        loader: the loader.
        rest: the batches after the first.
        first: the first batch.
        before, after: the generators of the CPU before and after it was read.
        turn: the number of iterations of the loader that had been started then, if it serves one at a time.
        state: the state of the stream before it was read; None if it has none.
    """

    loader: Any
    rest: Iterator[Batch]
    first: Batch
    before: rng_state.CpuStates
    after: rng_state.CpuStates
    turn: int | None
    state: Any

    def batches(self) -> Iterator[Batch]:
        """Return all batches of the epoch; the random numbers for reading the first one are drawn when it is
        requested."""
        if self.state is not None:
            batches: Iterator[Batch] = self.loader.batches(0, 0, self.state)
            return batches
        return self._continued()

    def _continued(self) -> Iterator[Batch]:
        """Yield the first batch and the rest.

        The epoch is restarted if this is not possible because other code has since iterated a loader that serves one
        iteration at a time, or because reading draws random numbers and would now draw other ones.
        """
        drew = not rng_state.same(self.before, self.after)
        if _turn(self.loader) != self.turn or (drew and not rng_state.same(rng_state.cpu_states(), self.before)):
            yield from self.loader.batches(0)
            return
        if drew:
            rng_state.set_cpu_states(self.after)
        yield self.first
        yield from self.rest


def _turn(loader: Any) -> int | None:
    return loader.turn if getattr(loader, "one_at_a_time", False) else None
