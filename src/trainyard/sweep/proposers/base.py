"""Port of proposers: what decides which jobs a sweep runs next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainyard.sweep.events import Event, Wish
from trainyard.sweep.goals import Goals
from trainyard.track.sweep_position import Rungs


@dataclass(frozen=True)
class NewJob:
    """Job that is to run.

    Attributes:
        overrides: its overrides.
        num: its number; None for the next one.
        rungs: where it reports its objective and pauses; None: it does neither.
        note: plain data that is recorded with the job, and passed to the proposer again (`Proposed.note`).
    """

    overrides: tuple[str, ...]
    num: int | None = None
    rungs: Rungs | None = None
    note: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Promote:
    """A paused job continues from its checkpoint.

    Attributes:
        num: its number.
        rungs: where it reports and pauses from here on.
        source: another job that has paused at the same position, whose checkpoint it continues from; None for its own.
        overrides: its overrides from here on, if there is a source.
    """

    num: int
    rungs: Rungs | None = None
    source: int | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prune:
    """A paused job is stopped permanently; of its checkpoints, only those of best values are kept.

    Attributes:
        num: its number.
        why: the reason, for people.
    """

    num: int
    why: str


Proposal = NewJob | Promote | Prune


class Proposer(ABC):
    """Decides which jobs to run next.

    Its state is a function of the events that it received, in order: `ask` and `judge` do not change the state. When a
    sweep is continued, a new object receives the events in the manifest, and then makes the same decisions as the
    previous object would have. (A grid, which never learns, only remembers that it was asked: each command proposes all
    of its jobs.)

    Example of a proposer that promotes the better half (`tests/helpers/halving.py` has all of it)::

        def ask(self, free):
            if not self.proposed:
                return [NewJob((f"optim.lr={rate}",), rungs=Rungs((2,), until=2)) for rate in self.rates]
            return [Promote(num) for num in self.better_half() if num in self.paused]

    Attributes:
        identity: its settings, as plain data. They are recorded, and a sweep is continued only with the same identity.
            Empty for a proposer that is identified by its jobs.
        goals: the metrics by which jobs are compared, if there are more than the single objective that each returns.
        returns: whether each job that pauses continues, so that stacks keep lanes for them.
    """

    identity: Mapping[str, Any] = {}
    goals: Goals | None = None
    returns = False

    @abstractmethod
    def ask(self, free: int) -> Sequence[Proposal]:
        """Return what to run next. It is called whenever a slot is free.

        Args:
            free: the number of free slots.

        Returns:
            An empty list if there is nothing to run before further events.
        """

    def judge(self, num: int, at: int, value: float) -> Wish | None:
        """Return the decision about a job that has reported, after the report was received; None to let it continue."""
        return None

    @property
    def ending(self) -> Sequence[str]:
        """What the ranking does not show about the end of the sweep, as lines for people."""
        return ()

    def told(self, event: Event) -> None:  # noqa: B027 (a grid never learns)
        """Receive an event. Each is passed once, when it is in the manifest."""
