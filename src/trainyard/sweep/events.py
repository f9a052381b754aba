"""Events that the scheduler receives, and the actions that it returns.

Each event has a record in the manifest, from which it is read back: `trainyard.sweep.event_records`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainyard.track.sweep_position import Rungs

JobState = Literal[
    "waiting", "running", "paused", "done", "failed", "interrupted", "timeout", "lost", "stopped", "pruned"
]
"""State of a job. `done`, `stopped` and `pruned` are for good. Others are tried again when the sweep is continued."""

Wish = Literal["pause", "stop", "prune"]
"""What a running job can be asked to do: end at a checkpoint, to be resumed or for good."""

FIRST_CLONE = 1_000_000
"""Number of a sweep's first clone; its other jobs have lower ones."""

FINAL: frozenset[str] = frozenset({"done", "stopped", "pruned"})

END_OF_WISH: Mapping[Wish, JobState] = {"pause": "paused", "stop": "stopped", "prune": "pruned"}
"""The state of a job that has done what it was asked."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What runs on a slot, or on several: one job, or a stack of jobs.

    Attributes:
        nums: the jobs, in the order of lanes.
        slots: the number of slots that it takes at once.
        attempts: attempts begun before.
        expected: the seconds that it is expected to take; None if unknown.
        alone_on: the devices that it needs for itself, because memory was too small for it beside others.
        rungs: where its jobs report; None if nobody asks.
        own_rungs: where jobs report that do so elsewhere, by number.
        fed: whether other jobs join it while it runs, for lanes that become free.
    """

    nums: tuple[int, ...]
    slots: int = 1
    attempts: int = 0
    expected: float | None = None
    alone_on: tuple[str, ...] = ()
    rungs: Rungs | None = None
    own_rungs: tuple[tuple[int, Rungs], ...] = ()
    fed: bool = False

    def rungs_of(self, num: int) -> Rungs | None:
        """Return where a job reports; None if nobody asks."""
        return dict(self.own_rungs).get(num, self.rungs)


@dataclass(frozen=True, slots=True)
class Began:
    """A head has started: nothing runs any more, and there are no slots yet."""


@dataclass(frozen=True, slots=True)
class SlotsGained:
    """There are further slots, each with its index and its device."""

    slots: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class SlotsLost:
    """Slots are gone, with what ran on them."""

    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a clone begins from.

    Attributes:
        job: the number of the job that was cloned.
        number: the `hydra.job.num` of its config, which the clone's has too: values may depend on it.
        keys: the keys of what its config has otherwise than the checkpoint.
        checkpoint: the name of the checkpoint.
    """

    job: int
    number: int
    keys: tuple[str, ...] = ()
    checkpoint: str = ""


@dataclass(frozen=True, slots=True)
class Proposed:
    """There is a job.

    Attributes:
        num: its number.
        overrides: its overrides.
        rungs: where it reports; None if nobody asks.
        subdir: its directory below the sweep's; None if it is not known.
        origin: what it begins from, if it is a clone.
        note: data that its proposer receives again with the event (`trainyard.sweep.proposers.NewJob`).
    """

    num: int
    overrides: tuple[str, ...] = ()
    rungs: Rungs | None = None
    subdir: str | None = None
    origin: Origin | None = None
    note: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Queued:
    """Units are to run from now on; their jobs leave the units that they were in.

    Attributes:
        why: empty for units that are new; else why their jobs wait again, such as `again` or `promoted`. Units that run
            `again` wait behind the new ones.
    """

    units: tuple[Unit, ...]
    why: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The process that runs a job has started."""

    num: int
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Joined:
    """Jobs that waited take free lanes of a stack that runs.

    Attributes:
        unit: the number of the stack's unit.
        nums: the jobs. They follow those of the unit, the ones that have left it included.
    """

    unit: int
    nums: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Emptied:
    """The process of a stack that others could join has ended; no job is left in it."""

    unit: int


@dataclass(frozen=True, slots=True)
class Inherited:
    """A paused job continues from another job: from its checkpoint, with its overrides, of which some are changed.

    Attributes:
        num: the job, which keeps its directory.
        source: the job that it continues from.
        at: the epoch, or iteration, at which both have paused.
        overrides: those that it has from here on.
        keys: the keys of its config that differ from those of the checkpoint.
        checkpoint: the name of the checkpoint.
    """

    num: int
    source: int
    at: int
    overrides: tuple[str, ...]
    keys: tuple[str, ...] = ()
    checkpoint: str = ""


@dataclass(frozen=True, slots=True)
class Reported:
    """A job has reported the value of its objective at a rung, and what its sweep bounds, by name, as far as known."""

    num: int
    at: int
    value: float
    metrics: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A running job is asked to end at its next checkpoint."""

    num: int
    wish: Wish
    why: str = ""


@dataclass(frozen=True, slots=True)
class Paused:
    """A job has no process any more, and one checkpoint from which it can be resumed."""

    num: int
    seconds: float = 0.0
    width: int = 1


@dataclass(frozen=True, slots=True)
class Ended:
    """A job has ended, and there is no further attempt at it.

    Attributes:
        seconds: the duration of its last attempt: of its stack's, if it ran in one.
        width: the number of jobs of that stack.
    """

    num: int
    state: JobState
    seconds: float = 0.0
    objective: Any = None
    error: str | None = None
    width: int = 1


@dataclass(frozen=True, slots=True)
class Stopping:
    """No further unit is to start, and those that run are to end."""

    why: str


Event = (
    Began
    | SlotsGained
    | SlotsLost
    | Proposed
    | Queued
    | Started
    | Joined
    | Emptied
    | Inherited
    | Reported
    | Asked
    | Paused
    | Ended
    | Stopping
)


@dataclass(frozen=True, slots=True)
class Start:
    """Start a unit on these slots.

    Attributes:
        number: the unit's number. No other unit has it, not even the next attempt at the same jobs.
    """

    number: int
    unit: Unit
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class End:
    """Ask the process of a unit to end."""

    number: int


@dataclass(frozen=True, slots=True)
class Release:
    """Ask the process of a unit that jobs join to let those go of which something is wished; the others train on."""

    number: int


@dataclass(frozen=True, slots=True)
class Drop:
    """A unit that was waiting will not start."""

    unit: Unit


Action = Start | End | Release | Drop
