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
"""State of a job. `done`, `stopped` and `pruned` are final. Jobs in other states are retried when the sweep is
continued."""

Wish = Literal["pause", "stop", "prune"]
"""Requests to a running job: end at a checkpoint, to be resumed later or permanently."""

FIRST_CLONE = 1_000_000
"""Number of a sweep's first clone; its other jobs have lower ones."""

FINAL: frozenset[str] = frozenset({"done", "stopped", "pruned"})

END_OF_WISH: Mapping[Wish, JobState] = {"pause": "paused", "stop": "stopped", "prune": "pruned"}
"""The state of a job after a request."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One job, or a stack of jobs, that runs on one or several slots.

    Attributes:
        nums: the jobs, in the order of lanes.
        slots: the number of slots that it needs.
        attempts: the number of earlier attempts.
        expected: its expected duration in seconds; None if unknown.
        alone_on: the devices that it needs exclusively, because memory was too small for several units.
        rungs: the rungs at which its jobs report; None for no reports.
        own_rungs: the rungs of jobs that report at other places, by number.
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
        """Return the rungs at which a job reports; None for no reports."""
        return dict(self.own_rungs).get(num, self.rungs)


@dataclass(frozen=True, slots=True)
class Began:
    """A head has started: nothing is running, and there are no slots yet.

    Attributes:
        slots: the maximum number of slots; 0 in a manifest that does not record it.
    """

    slots: int = 0


@dataclass(frozen=True, slots=True)
class SlotsGained:
    """There are additional slots, each with its index and its device."""

    slots: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class SlotsLost:
    """Slots were lost, with the units that ran on them."""

    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a clone.

    Attributes:
        job: the number of the job that was cloned.
        number: the `hydra.job.num` of its config, which is also used for the clone, because values may depend on it.
        keys: the keys whose values in its config differ from the checkpoint.
        checkpoint: the name of the checkpoint.
    """

    job: int
    number: int
    keys: tuple[str, ...] = ()
    checkpoint: str = ""


@dataclass(frozen=True, slots=True)
class Proposed:
    """A new job exists.

    Attributes:
        num: its number.
        overrides: its overrides.
        rungs: the rungs at which it reports; None for no reports.
        subdir: its directory below the sweep's; None if it is not known.
        origin: its origin, if it is a clone.
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
    """Units are queued; their jobs leave their previous units.

    Attributes:
        why: empty for new units; otherwise, the reason why their jobs wait again, such as `again` or `promoted`. Units
            that run `again` wait behind the new ones.
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
    """Waiting jobs take free lanes of a running stack.

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
    """A paused job continues from the checkpoint of another job, with the overrides of that job, some of which are
    changed.

    Attributes:
        num: the job, which keeps its directory.
        source: the job that it continues from.
        at: the epoch, or iteration, at which both have paused.
        overrides: its overrides from here on.
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
    """A job has reported the value of its objective at a rung, and the known values of bounded metrics by name."""

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
    """A job no longer has a process, and has one checkpoint from which it can be resumed.

    Attributes:
        seconds, width: see `Ended`.
        by_hand: whether a user has paused it, so that it does not continue before a user resumes it.
    """

    num: int
    seconds: float = 0.0
    width: int = 1
    by_hand: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """A job has ended and will not be retried.

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
    """No more units will start, and running units must end."""

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
        number: the unit's number. It is unique, even for the next attempt at the same jobs.
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
    """Ask the process of a fed stack to release the jobs with pending requests; the others continue."""

    number: int


@dataclass(frozen=True, slots=True)
class Drop:
    """A unit that was waiting will not start."""

    unit: Unit


Action = Start | End | Release | Drop
