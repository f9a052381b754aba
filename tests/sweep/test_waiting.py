"""Which unit starts next, and on which slots."""

from __future__ import annotations

from typing import Any

from trainyard.sweep.events import Unit
from trainyard.sweep.waiting import Slots, WaitingUnits


def waiting(devices: str, *units: Unit) -> tuple[Slots, WaitingUnits]:
    slots = Slots()
    for index, device in enumerate(devices.split()):
        slots.add(index, device)
    units_waiting = WaitingUnits(slots)
    for number, unit in enumerate(units):
        units_waiting.add(number, unit)
    return slots, units_waiting


def taken(units: WaitingUnits) -> list[tuple[int, tuple[int, ...]]]:
    found = []
    while (one := units.take()) is not None:
        found.append((one[0], one[2]))
    return found


def singles(count: int, **options: Any) -> list[Unit]:
    return [Unit((num,), **options) for num in range(count)]


def test_units_go_to_the_device_with_the_least_to_do() -> None:
    _, units = waiting("cuda:0 cuda:0 cuda:1", *singles(3))
    assert [slots for _, slots in taken(units)] == [(0,), (2,), (1,)]


def test_the_longest_is_first_and_those_of_unknown_length_before_it() -> None:
    seconds = [1.0, None, 5.0, 3.0, None]
    slots, units = waiting("cpu " * 6, *(Unit((num,), expected=each) for num, each in enumerate(seconds)))
    units.add(9, Unit((9,), expected=99.0), behind=True)
    assert [number for number, _ in taken(units)] == [1, 4, 2, 3, 0, 9]
    slots.free(3)
    assert taken(units) == []


def test_a_unit_that_must_be_alone_waits_for_its_device_and_holds_it() -> None:
    slots, units = waiting("cuda:0 cuda:0 cuda:1", *singles(4))
    assert taken(units) == [(0, (0,)), (1, (2,)), (2, (1,))]
    slots.free(0)
    units.add(4, Unit((0,), alone_on=("cuda:0",)))
    assert taken(units) == [], "slot 0 is free, but not its device"
    slots.free(1)
    assert taken(units) == [(4, (0,))]
    assert slots.vacant == 0, "slot 1 is beside it"
    slots.free(2)
    assert taken(units) == [(3, (2,))]


def test_a_unit_of_several_slots_waits_until_they_are_free_and_nobody_overtakes_it() -> None:
    wide = Unit((1,), slots=2)
    slots, units = waiting("cuda:0 cuda:1 cuda:0 cuda:1", Unit((0,)), wide, Unit((2,), slots=2), Unit((3,)))
    assert taken(units) == [(0, (0,)), (1, (1, 2))], "the least busy device first, and each one once"
    slots.free(0)  # slot 3 would do for job 3
    slots.free(1)
    assert taken(units) == [(2, (1, 0)), (3, (3,))]


def test_a_unit_for_which_there_are_too_few_slots_holds_up_nobody() -> None:
    slots, units = waiting("cpu", Unit((0,), slots=2), *singles(1))
    assert taken(units) == [(1, (0,))]
    slots.add(1, "cpu")
    slots.free(0)
    units.slots_gained()
    assert taken(units) == [(0, (0, 1))]


def test_a_unit_whose_device_is_gone_runs_elsewhere() -> None:
    slots, units = waiting("cuda:0 cuda:1", *singles(2))
    assert len(taken(units)) == 2
    units.add(2, Unit((0,), alone_on=("cuda:0",)))
    slots.remove(0)
    units.slots_lost()
    slots.free(1)
    assert taken(units) == [(2, (1,))]
