"""Results of the members of a stack, for a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trainyard.track.sweep_position import Returned

if TYPE_CHECKING:
    from trainyard.runner import Member


@dataclass(frozen=True)
class MemberResult:
    """Result of one member.

    Attributes:
        state: how it ended.
        value: its best objective (None if it has no objective), or the metrics that its sweep requests.
        error: why it failed, or where it was interrupted, on one line.
    """

    state: Literal["done", "failed", "interrupted", "paused"]
    value: Returned = None
    error: str | None = None


def result_of(member: Member, metrics: Sequence[str], *, interrupted: bool) -> MemberResult:
    """Return the result of a member whose training has ended, or was interrupted.

    Args:
        member: the member.
        metrics: the metrics that its sweep requests; empty for the objective.
        interrupted: whether the training was interrupted.
    """
    from trainyard.run.measured import returned

    if member.paused:
        return MemberResult("paused")
    if member.failed:
        return MemberResult("failed", error=f"The training failed: {member.stop_reason}.")
    value = returned(member, metrics)
    if interrupted:
        return MemberResult("interrupted", value, f"Interrupted at iteration {member.iter}.")
    return MemberResult("done", value)
