"""Interface of proposers, which decide which jobs a sweep runs next."""

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
    """New job of a sweep.

    Attributes:
        overrides: its overrides.
        num: its number; None: the next number.
        rungs: the rungs at which it reports its objective and pauses; None: no rungs.
        note: plain data that is recorded with the job and passed back to the proposer (`Proposed.note`).
    """

    overrides: tuple[str, ...]
    num: int | None = None
    rungs: Rungs | None = None
    note: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Promote:
    """A paused job continues from its checkpoint. A user must not have paused it (`Paused.by_hand`).

    Attributes:
        num: its number.
        rungs: the next rungs at which it reports and pauses.
        source: another job that has paused at the same position, from whose checkpoint the job continues; None: its own
            checkpoint.
        overrides: its new overrides, if there is a source.
    """

    num: int
    rungs: Rungs | None = None
    source: int | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prune:
    """A paused job is stopped permanently; only the checkpoints of its best values are kept.

    Attributes:
        num: its number.
        why: the reason, for messages.
    """

    num: int
    why: str


Proposal = NewJob | Promote | Prune


class Proposer(ABC):
    """Decides which jobs to run next.

    The state of a proposer is a function of the received events, in order: `ask` and `judge` do not change the state.
    When a sweep is resumed, a new object receives the events in the manifest. It then makes the same decisions as the
    previous object. (A grid ignores events and only stores that it was asked: each command proposes all its jobs.)

    Example of a proposer that promotes the better half (`tests/helpers/halving.py` is the complete class)::

        def ask(self, free):
            if not self.proposed:
                return [NewJob((f"optim.lr={rate}",), rungs=Rungs((2,), until=2)) for rate in self.rates]
            return [Promote(num) for num in self.better_half() if num in self.paused]

    Attributes:
        identity: its settings, as plain data. The identity is recorded, and a sweep can be resumed only with the same
            identity. Empty for a proposer that is identified by its jobs.
        goals: the metrics by which jobs are compared, if jobs return more than a single objective.
        returns: whether every paused job continues, so that stacks keep lanes for paused jobs.
        listed: the overrides of all jobs, in order, if they are known from the start. All jobs are then checked before
            the first one starts.
        explores: whether a job may have a value that no part accepts. Such a job fails, and the sweep continues, unless
            all the first jobs have such a value.
    """

    identity: Mapping[str, Any] = {}
    goals: Goals | None = None
    returns = False
    listed: Sequence[Sequence[str]] = ()
    explores = False
    may_be_new = True

    @abstractmethod
    def ask(self, free: int) -> Sequence[Proposal]:
        """Return the next jobs. This method is called when a slot is free.

        Args:
            free: the number of free slots.

        Returns:
            The proposals; an empty list if there is no job to run before further events.
        """

    def judge(self, num: int, at: int, value: float) -> Wish | None:
        """Return the decision about a job after its report was received; None: the job continues."""
        return None

    def first_rungs(self, index: int) -> Rungs | None:
        """Return the first rungs of a listed job that is not proposed yet, by its index; None: it trains to its end."""
        return None

    def beyond(self, num: int) -> Rungs | None:
        """Return the next rungs of a job that a user resumes at its last rung; None: the job trains to its end."""
        return None

    @property
    def ending(self) -> Sequence[str]:
        """What the ranking does not show about the end of the sweep, as lines of text for users."""
        return ()

    def told(self, event: Event) -> None:  # noqa: B027 (a grid never learns)
        """Receive an event. Each event is passed once, when it is in the manifest."""
