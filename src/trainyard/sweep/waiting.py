"""Waiting units and free slots, which determine which unit starts next, and where. An event takes O(log n)."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

from trainyard.sweep.events import Unit

CPU = "cpu"


def is_cpu(device: str) -> bool:
    """Return whether a device consists of the cores of a machine: `cpu`, or `cpu@MACHINE`."""
    return device.partition("@")[0] == CPU


def machine(device: str) -> str:
    """Return the machine of a device, such as `a` for `cuda:0@a`; empty for this machine."""
    return device.partition("@")[2]


@dataclass
class _Device:
    """Slots of one device.

    Attributes:
        slots: the indices of all slots.
        free: the slots on which no unit runs.
        order: the slots that were free at some time, the lowest index first.
        alone: the numbers of units that wait for the entire device.
        held: whether a unit runs that occupies the device exclusively.
    """

    slots: set[int] = field(default_factory=set)
    free: set[int] = field(default_factory=set)
    order: list[int] = field(default_factory=list)
    alone: deque[int] = field(default_factory=deque)
    held: bool = False

    @property
    def busy(self) -> int:
        return len(self.slots) - len(self.free)

    @property
    def first(self) -> int | None:
        """The lowest index of a free slot."""
        while self.order and self.order[0] not in self.free:
            heappop(self.order)
        return self.order[0] if self.order else None

    def take(self) -> int:
        assert self.first is not None
        index = heappop(self.order)
        self.free.discard(index)
        return index

    def give_back(self, index: int) -> None:
        if index not in self.free:
            self.free.add(index)
            heappush(self.order, index)


class Slots:
    """Slots by device. Units are placed on the least busy device first; a wide unit takes a CUDA device only once.

    A wide unit receives its slots on one machine if one is large enough, otherwise on several machines, each of which
    it occupies completely.

    Attributes:
        devices: the devices, by name.
        capacity: the number of slots that one unit can take.
    """

    def __init__(self) -> None:
        self.devices: dict[str, _Device] = {}
        self.capacity = 0
        self._of: dict[int, str] = {}
        self._open: list[tuple[int, int, str]] = []  # busy slots, first free one, device; some are out of date

    def __contains__(self, index: int) -> bool:
        return index in self._of

    def __len__(self) -> int:
        return len(self._of)

    @property
    def indices(self) -> tuple[int, ...]:
        return tuple(self._of)

    @property
    def vacant(self) -> int:
        """The number of slots on which a unit of one slot could start."""
        return sum(len(it.free) for it in self.devices.values() if not it.alone and not it.held)

    def device(self, index: int) -> str:
        return self._of[index]

    def add(self, index: int, device: str) -> None:
        if index not in self._of:
            self._of[index] = device
            self.devices.setdefault(device, _Device()).slots.add(index)
            self._count()
            self.free(index)

    def remove(self, index: int) -> None:
        name = self._of.pop(index, None)
        if name is not None:
            device = self.devices[name]
            device.slots.discard(index)
            device.free.discard(index)
            self._count()
            self.show(name)

    def _count(self) -> None:
        self.capacity = sum(_room(name, it.slots) for name, it in self.devices.items())

    def free(self, index: int) -> None:
        """Record that no unit runs on a slot; a lost slot remains lost."""
        if index in self._of:
            name = self._of[index]
            self.devices[name].give_back(index)
            self.show(name)

    def show(self, name: str) -> None:
        """Record that a device has changed."""
        device = self.devices[name]
        if not device.alone and not device.held and (first := device.first) is not None:
            heappush(self._open, (_busy(name, device), first, name))

    def take(self, count: int) -> tuple[int, ...]:
        """Take free slots; take none if there are too few."""
        if count > 1:
            return self._take_wide(count)
        while self._open:
            busy, first, name = heappop(self._open)
            device = self.devices[name]
            if device.alone or device.held or (busy, first) != (_busy(name, device), device.first):
                continue
            index = device.take()
            self.show(name)
            return (index,)
        return ()

    def _take_wide(self, count: int) -> tuple[int, ...]:
        """Take slots on the machine with the fewest free slots that are enough; if no machine is large enough, on
        several complete machines."""
        of: dict[str, list[str]] = {}
        for name in self.devices:
            of.setdefault(machine(name), []).append(name)
        room = {each: sum(_room(name, self.devices[name].slots) for name in names) for each, names in of.items()}
        free = {each: sum(self._free(name) for name in names) for each, names in of.items()}
        if count <= max(room.values(), default=0):
            fitting = sorted((free[each], each) for each in of if free[each] >= count)
            return self._take_on(of[fitting[0][1]], count) if fitting else ()
        idle = [
            each for each in of if free[each] == room[each] > 0 and not any(self.devices[it].busy for it in of[each])
        ]
        if sum(room[each] for each in idle) < count:
            return ()
        taken: tuple[int, ...] = ()
        for each in sorted(idle, key=lambda each: -room[each]):
            taken += self._take_on(of[each], min(count - len(taken), room[each]))
        return taken

    def _free(self, name: str) -> int:
        device = self.devices[name]
        return 0 if device.alone or device.held else _room(name, device.free)

    def _take_on(self, names: Sequence[str], count: int) -> tuple[int, ...]:
        """Take slots on these devices, which have enough free slots."""
        taken: list[int] = []
        for name in sorted(
            filter(self._free, names), key=lambda name: (self.devices[name].busy, self.devices[name].first)
        ):
            taken += [self.devices[name].take() for _ in range(min(count - len(taken), self._free(name)))]
            self.show(name)
        return tuple(taken)

    def may_hold(self, unit: Unit) -> bool:
        """Return whether the devices that a unit needs exclusively have enough slots for it."""
        own = [(name, self.devices[name].slots) for name in unit.alone_on if name in self.devices]
        room = sum(_room(name, slots) for name, slots in own)
        return not unit.alone_on or (len(own) == len(unit.alone_on) and all(s for _, s in own) and room >= unit.slots)

    def take_alone(self, unit: Unit) -> tuple[int, ...]:
        """Take the slots of a unit that occupies its devices exclusively; they are free."""
        names = sorted(unit.alone_on, key=lambda name: min(self.devices[name].slots))
        found: list[int] = []
        for name in names:
            device = self.devices[name]
            wanted = len(device.free) if is_cpu(name) else 1
            found += [device.take() for _ in range(min(wanted, unit.slots - len(found)))]
            device.held = True
        return tuple(found)


def _room(name: str, slots: Collection[int]) -> int:
    """Return how many of these slots of a device a unit can take."""
    return len(slots) if is_cpu(name) else min(1, len(slots))


def _busy(name: str, device: _Device) -> int:
    """Return how busy a device is, for the order of devices. All cores are equal."""
    return 0 if is_cpu(name) else device.busy


class WaitingUnits:
    """Units that wait for slots.

    The longest unit comes first, so that no long unit remains at the end while slots are idle (Graham, 1969, "Bounds on
    multiprocessing timing anomalies"). A unit of unknown length could be the longest, so such units come before all
    others, in the given order. Units that run again wait behind units that have not started yet. No unit overtakes one
    that waits for several slots, which would otherwise wait until the end, unless the total number of slots is too
    small for it.

    Args:
        slots: the slots.

    Attributes:
        demand: the total number of slots that the units take.
    """

    def __init__(self, slots: Slots) -> None:
        self.demand = 0
        self._slots = slots
        self._units: dict[int, Unit] = {}
        self._heap: list[tuple[bool, float, int]] = []
        self._too_wide: list[tuple[bool, float, int]] = []  # taken from the heap

    def __len__(self) -> int:
        return len(self._units)

    def __getitem__(self, number: int) -> Unit:
        return self._units[number]

    def __contains__(self, number: int) -> bool:
        return number in self._units

    def units(self) -> Iterator[Unit]:
        """Yield the units, in the order of their numbers."""
        return iter([self._units[number] for number in sorted(self._units)])

    def add(self, number: int, unit: Unit, *, behind: bool = False) -> None:
        """Add a unit; `behind` the units that have not started yet."""
        if not self._slots.may_hold(unit):
            unit = replace(unit, alone_on=())  # a device is gone
        self._units[number] = unit
        self.demand += unit.slots
        if not unit.alone_on:
            expected = 0.0 if behind else float("inf") if unit.expected is None else unit.expected
            heappush(self._heap, (behind, -expected, number))
        for name in unit.alone_on:
            self._slots.devices[name].alone.append(number)

    def remove(self, number: int) -> Unit:
        unit = self._units.pop(number)
        self.demand -= unit.slots
        for name in unit.alone_on:
            self._slots.devices[name].alone.remove(number)
            self._slots.show(name)
        return unit

    def shrink(self, number: int, num: int) -> None:
        """Remove a job from a unit of several jobs."""
        unit = self._units[number]
        self._units[number] = replace(unit, nums=tuple(each for each in unit.nums if each != num))

    def clear(self) -> list[Unit]:
        """Remove and return all units, in the order of their jobs."""
        units = [self.remove(number) for number in list(self._units)]
        self._heap.clear()
        self._too_wide.clear()
        return sorted(units, key=lambda unit: unit.nums[0])

    def slots_gained(self) -> None:
        """Reconsider the units for which there were too few slots."""
        for entry in self._too_wide:
            heappush(self._heap, entry)
        self._too_wide.clear()

    def slots_lost(self) -> None:
        """Reconsider the units that wait for a lost device."""
        alone = dict.fromkeys(number for device in self._slots.devices.values() for number in device.alone)
        for number in alone:
            if not self._slots.may_hold(self._units[number]):
                self.add(number, self.remove(number), behind=True)

    def take(self) -> tuple[int, Unit, tuple[int, ...]] | None:
        """Remove and return the number of the next unit, the unit, and its slots; None if none can start now."""
        for name, device in self._slots.devices.items():
            if device.alone and self._may_start_alone(device.alone[0], name):
                number = device.alone[0]
                unit = self._units.pop(number)
                self.demand -= unit.slots
                for each in unit.alone_on:
                    self._slots.devices[each].alone.popleft()
                return number, unit, self._slots.take_alone(unit)
        while self._heap and self._slots.capacity:
            number = self._heap[0][2]
            waiting = self._units.get(number)
            if waiting is None:
                heappop(self._heap)
            elif waiting.slots > self._slots.capacity:
                self._too_wide.append(heappop(self._heap))
            elif slots := self._slots.take(waiting.slots):
                heappop(self._heap)
                del self._units[number]
                self.demand -= waiting.slots
                return number, waiting, slots
            else:
                return None
        return None

    def _may_start_alone(self, number: int, name: str) -> bool:
        """Return whether a unit is the first in line for all devices that it needs, and these are free."""
        unit = self._units[number]
        if name != unit.alone_on[0]:
            return False  # it is looked at once
        devices = [self._slots.devices[each] for each in unit.alone_on]
        return all(each.alone[0] == number and not each.busy and not each.held for each in devices)


def device_names(slots: Slots, indices: Sequence[int]) -> tuple[str, ...]:
    """Return the devices of slots, each once."""
    return tuple(dict.fromkeys(slots.device(index) for index in indices))
