"""Results of the members of a stack, as a sweep takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from trainyard.runner import Member


@dataclass(frozen=True)
class MemberResult:
    """Result of one member.

    Attributes:
        state: how it ended.
        value: its best objective; None where it has none.
        error: why it failed, on one line.
    """

    state: Literal["done", "failed", "interrupted", "paused"]
    value: float | None = None
    error: str | None = None


def result_of(member: Member, *, interrupted: bool) -> MemberResult:
    """Return the result of a member whose training has ended, or was interrupted."""
    from trainyard.run.train import objective

    if member.paused:
        return MemberResult("paused")
    if member.failed:
        return MemberResult("failed", error=f"The training failed: {member.stop_reason}.")
    return MemberResult("interrupted" if interrupted else "done", objective(member))
