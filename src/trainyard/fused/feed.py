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
    from trainyard.fused.member import StackMember
    from trainyard.track.sweep_position import SweepPosition


@dataclass(frozen=True)
class LaneJob:
    """A job for a lane.

    Attributes:
        config: as for `FusedRunner`.
        info: the member's record for MLflow; None makes one that holds the name.
        position: its position in its sweep; None if it is of none.
        number: its number among all jobs of the stack; None for the next one.
    """

    config: Mapping[str, Any] | DictConfig
    info: RunInfo | None = None
    position: SweepPosition | None = None
    number: int | None = None


@dataclass(frozen=True)
class Span:
    """What a member trains in one lane, at one width.

    Attributes:
        member: the member.
        lane: its row in the stack.
        width: the lanes of the stack.
        epoch, iter: the member's own place when the span begins.
    """

    member: StackMember
    lane: int
    width: int
    epoch: int
    iter: int


class Feed(Protocol):
    """Source of the next members of a stack.

    Its methods are called by the thread that trains, where members join; a feed that waits in `take` keeps all lanes
    waiting.
    """

    @property
    def closed(self) -> bool:
        """Whether no job will come now: lanes that are free are then cut out of the stack."""

    def take(self, count: int, *, wait: bool) -> Sequence[LaneJob]:
        """Return the next jobs, at most this number.

        Args:
            count: the free lanes.
            wait: no lane is occupied: wait for a job, and return nothing only if the feed is closed.
        """

    def cutting(self) -> None:
        """Note that free lanes are about to be removed: the members get other rows."""

    def placed(self, spans: Sequence[Span]) -> None:
        """Note spans that begin now, before their members train on: they have joined, or the stack was cut."""

    def left(self, members: Sequence[StackMember]) -> None:
        """Note that members train no longer: they have ended, failed or pause; their checkpoints are being written."""

    def asked(self) -> Sequence[tuple[int, bool]]:
        """Return the numbers of members that are to leave, each once, and whether each pauses.

        It is asked after every iteration.
        """

    def refused(self, job: LaneJob, error: TrainyardError) -> None:
        """Note that a job cannot train in this stack: it is `Unfusable`, or its config cannot work."""


class LaneQueue:
    """Feed of jobs that are known from the beginning, in order.

    Args:
        jobs: configs, or `LaneJob`s.

    Attributes:
        spans: of the members, in order.
        refusals: the jobs that could not train in the stack, with the reasons.
    """

    def __init__(self, jobs: Sequence[LaneJob | Mapping[str, Any] | DictConfig]) -> None:
        self._waiting = deque(job if isinstance(job, LaneJob) else LaneJob(job) for job in jobs)
        self.spans: list[Span] = []
        self.refusals: list[tuple[LaneJob, TrainyardError]] = []

    @property
    def closed(self) -> bool:
        return not self._waiting

    def take(self, count: int, *, wait: bool) -> Sequence[LaneJob]:
        return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def cutting(self) -> None:
        """Do nothing."""

    def placed(self, spans: Sequence[Span]) -> None:
        self.spans += spans

    def left(self, members: Sequence[StackMember]) -> None:
        """Do nothing: the members' journals say how they ended."""

    def asked(self) -> Sequence[tuple[int, bool]]:
        return ()

    def refused(self, job: LaneJob, error: TrainyardError) -> None:
        self.refusals.append((job, error))
