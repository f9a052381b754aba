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
        rungs: where it reports the value of its objective, and pauses; None for neither.
        note: plain data that is recorded with the job, and told again (`Proposed.note`).
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
        source: another job that has paused at the same place, as which it goes on; None for itself.
        overrides: those that it has from here on, if there is a source.
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

    Its state is a function of the events that it was told, in order: `ask` and `judge` change nothing. A sweep that is
    continued tells the events in its manifest to a new object, which then decides as the one before would have. (A
    grid, which never learns, only remembers that it was asked: each command proposes all of it.)

    Example of a proposer that promotes the better half (`tests/helpers/halving.py` has all of it)::

        def ask(self, free):
            if not self.proposed:
                return [NewJob((f"optim.lr={rate}",), rungs=Rungs((2,), until=2)) for rate in self.rates]
            return [Promote(num) for num in self.better_half() if num in self.paused]

    Attributes:
        identity: what it decides by, as plain data: it is recorded, and a sweep is continued only with the same. Empty
            for a proposer that the jobs themselves identify.
        goals: what jobs are compared by, where that is more than the one objective that each returns.
        returns: whether each job that pauses goes on: stacks keep their lanes for them.
    """

    identity: Mapping[str, Any] = {}
    goals: Goals | None = None
    returns = False

    @abstractmethod
    def ask(self, free: int) -> Sequence[Proposal]:
        """Return what is to run next. It is asked whenever a slot is free.

        Args:
            free: the number of free slots.

        Returns:
            Nothing, where there is nothing to run before more is told.
        """

    def judge(self, num: int, at: int, value: float) -> Wish | None:
        """Return what becomes of a job that has reported, after that was told; None to let it go on."""
        return None

    def told(self, event: Event) -> None:  # noqa: B027 (a grid never learns)
        """Take an event in. Each comes once, when it is in the manifest."""
