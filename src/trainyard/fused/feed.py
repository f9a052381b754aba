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
        config: the config, as for `FusedRunner`.
        info: the member's record for MLflow; None creates one with the name.
        position: its position in its sweep; None without a sweep.
        number: its number among all jobs of the stack; None for the next one.
    """

    config: Mapping[str, Any] | DictConfig
    info: RunInfo | None = None
    position: SweepPosition | None = None
    number: int | None = None


@dataclass(frozen=True)
class Span:
    """Part of a member's training in one lane at one width.

    Attributes:
        member: the member.
        lane: its row in the stack.
        width: the lanes of the stack.
        epoch, iter: the position of the member when the span begins.
    """

    member: StackMember
    lane: int
    width: int
    epoch: int
    iter: int


class Feed(Protocol):
    """Source of the next members of a stack.

    The training thread calls the methods. A feed that waits in `take` stops all lanes.
    """

    @property
    def closed(self) -> bool:
        """Whether no more jobs will come; free lanes are then removed from the stack."""

    def take(self, count: int, *, wait: bool) -> Sequence[LaneJob]:
        """Return the next jobs, at most this number.

        Args:
            count: the free lanes.
            wait: wait for a job, because no lane is occupied; return nothing only if the feed is closed.
        """

    def cutting(self) -> None:
        """Record that free lanes are about to be removed, so that the members get other rows."""

    def placed(self, spans: Sequence[Span]) -> None:
        """Record spans that begin now, before their members continue: the members have joined, or the stack was cut."""

    def left(self, members: Sequence[StackMember]) -> None:
        """Record that members no longer train: they have ended, failed or paused; their checkpoints are being
        written."""

    def asked(self) -> Sequence[tuple[int, bool]]:
        """Return the numbers of members that must leave, each once, and whether each pauses.

        It is called after every iteration.
        """

    def refused(self, job: LaneJob, error: TrainyardError) -> None:
        """Record that a job cannot train in this stack: it is `Unfusable`, or its config is invalid."""


class LaneQueue:
    """Feed of jobs that are known from the start, in order.

    Args:
        jobs: configs, or `LaneJob`s.

    Attributes:
        spans: the spans of the members, in order.
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
        """Do nothing: the journals of the members record how they ended."""

    def asked(self) -> Sequence[tuple[int, bool]]:
        return ()

    def refused(self, job: LaneJob, error: TrainyardError) -> None:
        self.refusals.append((job, error))
