"""Feeds: the jobs that wait for a lane of a stack to become free."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig

from trainyard.errors import TrainyardError
from trainyard.track import RunInfo

if TYPE_CHECKING:
    from trainyard.runner import Member


@dataclass(frozen=True)
class LaneJob:
    """A job for a lane.

    Attributes:
        config: as for `FusedRunner`.
        info: the member's record for MLflow; None makes one that holds the name.
    """

    config: Mapping[str, Any] | DictConfig
    info: RunInfo | None = None


class Feed(Protocol):
    """Source of the next members of a stack.

    Its methods are called by the thread that trains, between two epochs; a feed that waits in `take` keeps all lanes
    waiting.
    """

    @property
    def closed(self) -> bool:
        """Whether no job will come any more: lanes that become free are then cut out of the stack."""

    def take(self, *, wait: bool) -> LaneJob | None:
        """Return the next job; None if there is none now.

        Args:
            wait: no lane is occupied: wait for a job, and return None only if the feed is closed.
        """

    def joined(self, member: Member, lane: int, width: int) -> None:
        """Note that a member trains in a lane of a stack of this width from its present epoch on."""

    def left(self, member: Member, lane: int) -> None:
        """Note that a member trains no longer: it has ended, failed or pauses; its last checkpoint is being written."""

    def refused(self, job: LaneJob, error: TrainyardError) -> None:
        """Note that a job cannot train in this stack: it is `Unfusable`, or its config cannot work."""


@dataclass(frozen=True)
class Span:
    """What a member has trained in one lane.

    Attributes:
        member: the member.
        lane: its row in the stack.
        width: the lanes of the stack.
        epoch, iter: the member's own place when it joined.
    """

    member: Member
    lane: int
    width: int
    epoch: int
    iter: int


class LaneQueue:
    """Feed of jobs that are known from the beginning, in order.

    Args:
        jobs: configs, or `LaneJob`s.

    Attributes:
        spans: of the members that have joined, in order.
        refusals: the jobs that could not train in the stack, with the reasons.
    """

    def __init__(self, jobs: Sequence[LaneJob | Mapping[str, Any] | DictConfig]) -> None:
        self._waiting = deque(job if isinstance(job, LaneJob) else LaneJob(job) for job in jobs)
        self.spans: list[Span] = []
        self.refusals: list[tuple[LaneJob, TrainyardError]] = []

    @property
    def closed(self) -> bool:
        return not self._waiting

    def take(self, *, wait: bool) -> LaneJob | None:
        return self._waiting.popleft() if self._waiting else None

    def joined(self, member: Member, lane: int, width: int) -> None:
        self.spans.append(Span(member, lane, width, member.epoch, member.iter))

    def left(self, member: Member, lane: int) -> None:
        """Do nothing: the members' journals say how they ended."""

    def refused(self, job: LaneJob, error: TrainyardError) -> None:
        self.refusals.append((job, error))
