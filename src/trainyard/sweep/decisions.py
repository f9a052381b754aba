"""Decisions of a sweep that can change numbers. Each decision is recorded in the manifest before it takes effect, and
followed when the sweep is continued.

The promise: results are bit-identical with the recorded decisions on the same kind of CPU; otherwise, they are
equal up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainyard.sweep.executor.slots import Slot
from trainyard.track.facts import cpu_model

PROMISE = (
    "results are bit-identical with the recorded decisions on the same kind of CPU; otherwise, they are equal up "
    "to rounding"
)


_IN_WORDS = {
    "device": "the device",
    "threads": "the number of threads",
    "slots": "the number of slots",
    "cpu": "the CPU",
}
"""Attributes of a decision that a machine may not be able to follow, with their names for users."""
_OF_LANES = ("lanes", "width", "epochs", "iters")


@dataclass(frozen=True)
class Decision:
    """How one job trains, or several as one program.

    Attributes:
        nums: the jobs, in the order of lanes.
        device: the kind of slot: `cpu` or `cuda`.
        threads: threads of the task; of each process, if it trains on several devices.
        slots: the number of slots that it takes.
        cpu: the kind of CPU.
        note: the reason, for users.
        lanes: the lane of each job; empty if these are all lanes, in order.
        width: the number of lanes; 0 if that is the number of jobs.
        epochs: the epoch of each job from which it has trained in its lane at this width; empty if that is not known.
        iters: the same in iterations.
    """

    nums: tuple[int, ...]
    device: str
    threads: int
    slots: int = 1
    cpu: str = ""
    note: str = ""
    lanes: tuple[int, ...] = ()
    width: int = 0
    epochs: tuple[int, ...] = ()
    iters: tuple[int, ...] = ()

    @property
    def all_lanes(self) -> int:
        """The number of lanes, the free ones included."""
        return self.width or len(self.nums)

    def places(self, nums: Sequence[int]) -> tuple[int, ...]:
        """Return the lanes of some of the jobs."""
        lanes = dict(zip(self.nums, self.lanes or range(len(self.nums)), strict=True))
        return tuple(lanes[num] for num in nums)

    def part(self, nums: Sequence[int]) -> Decision:
        """Return the decision that some of the jobs continue in their lanes, while the lanes of the others are free."""
        epochs, iters = self._of(self.epochs, nums), self._of(self.iters, nums)
        lanes = self.places(nums)
        return replace(self, nums=tuple(nums), lanes=lanes, width=self.all_lanes, epochs=epochs, iters=iters)

    def _of(self, values: tuple[int, ...], nums: Sequence[int]) -> tuple[int, ...]:
        """Return the values of some of the jobs; empty if there are no values."""
        by_num = dict(zip(self.nums, values, strict=True)) if values else {}
        return tuple(by_num[num] for num in nums) if by_num else ()

    @property
    def record(self) -> dict[str, Any]:
        """The decision as plain data, without lanes if they contain no information."""
        return {key: value for key, value in asdict(self).items() if key not in _OF_LANES or value}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Decision:
        """Return the decision of a record."""
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in record.items()}
        return cls(**values)

    @classmethod
    def here(cls, nums: Sequence[int], slot: Slot, slots: int = 1, note: str = "") -> Decision:
        """Return the decision that this machine suggests.

        Args:
            nums: the jobs, in the order of lanes.
            slot: a slot of this machine.
            slots: the number of slots that they take.
            note: the reason, for users.
        """
        return cls(tuple(nums), slot.device.partition(":")[0], slot.threads, slots, cpu_model(), note)

    def followed(self, here: Decision, room: int) -> tuple[Decision, str]:
        """Return this decision as far as it can be followed for the jobs of another one, and the parts that cannot be
        followed.

        Args:
            here: the decision that this machine suggests for the remaining jobs.
            room: the number of threads that a slot has room for.
        """
        own = self.part(here.nums) if self.width else here
        found = replace(own, device=here.device, slots=here.slots, cpu=here.cpu)
        found = replace(found, threads=min(self.threads, room), note=self.note)
        pairs = [(what, getattr(self, name), getattr(found, name)) for name, what in _IN_WORDS.items()]
        return found, "; ".join(f"{what} was {own}, but is {other} here" for what, own, other in pairs if own != other)


@dataclass(frozen=True)
class KnownFit:
    """Measured fit of a kind of jobs.

    Attributes:
        width: jobs in a stack; 1 if they run one by one.
        reason: why they run one by one; otherwise empty.
        note: the measurement, for users.
        tried: the number of jobs of the kind.
        seconds: the slot time of a job in this way, without validation; None if unknown.
    """

    width: int
    reason: str
    note: str
    tried: int
    seconds: float | None = None


def room(slot: Slot) -> int:
    """Return the number of threads that a slot has room for: its cores."""
    return len(os.sched_getaffinity(0) if slot.cpus is None else slot.cpus)


def tasks(left: Iterable[int], recorded: Mapping[int, Decision]) -> list[tuple[int, ...]]:
    """Return the recorded tasks of the remaining jobs, each in the recorded order.

    Args:
        left: the numbers of the remaining jobs.
        recorded: the last decision on each job that has one.
    """
    numbers = sorted(left)
    last = dict.fromkeys(recorded[num] for num in numbers if num in recorded)
    here = set(numbers)
    return [tuple(num for num in it.nums if num in here and recorded[num] == it) for it in last]
