"""Entry of a job in the manifest of its sweep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainyard.sweep.decisions import Decision
from trainyard.sweep.events import FINAL, Inherited, Origin


@dataclass
class Entry:
    """Entry of a job: overrides, directory, decision, last state and result, origin, and lineage.

    `by_hand` is whether a user has paused it.
    """

    overrides: list[str]
    subdir: str | None = None
    decision: Decision | None = None
    state: str = "waiting"
    seconds: float | None = None
    objective: Any = None
    error: str | None = None
    width: int = 1
    by_hand: bool = False
    origin: Origin | None = None
    lineage: list[Inherited] = field(default_factory=list)

    @property
    def cost(self) -> float | None:
        """Seconds of slot time that the job took."""
        return None if self.seconds is None else self.seconds / self.width

    @property
    def is_left(self) -> bool:
        """Whether the job runs when the sweep is continued."""
        return self.state not in FINAL

    @property
    def is_held(self) -> bool:
        """Whether the job is paused until a user resumes it."""
        return self.state == "paused" and self.by_hand

    @property
    def has_failed(self) -> bool:
        """Whether the job has not reached its end: it is not done, stopped, pruned or paused."""
        return self.state not in (*FINAL, "paused")
