"""Which unit starts next, and on which slots."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

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


def test_a_wide_unit_is_put_on_one_machine_if_one_is_large_enough() -> None:
    two = [Unit((num,), slots=2) for num in range(2)]
    slots, units = waiting("cpu@a cpu@b cpu@b cpu@b cpu@c cpu@c", *two, *singles(1))
    assert taken(units) == [(0, (4, 5)), (1, (1, 2)), (2, (0,))], "where the fewest are left over"
    units.add(3, Unit((3,), slots=2))
    slots.free(4)
    assert taken(units) == [], "slots 3 and 4 are on two machines"
    slots.free(1)
    assert taken(units) == [(3, (1, 3))]


def test_a_unit_that_no_machine_is_large_enough_for_takes_whole_machines() -> None:
    devices = "cuda:0@a cuda:1@a cuda:0@b cuda:1@b cuda:0@c cuda:1@c"
    slots, units = waiting(devices, *singles(1), Unit((1,), slots=4), Unit((2,), slots=3))
    assert taken(units) == [(0, (0,)), (1, (2, 3, 4, 5))]
    slots.free(2)
    slots.free(3)
    assert taken(units) == [], "machine a is not free as a whole"
    slots.free(0)
    assert taken(units) == [(2, (0, 1, 2))], "two of one machine, one of another"
    assert (slots.capacity, units.demand) == (6, 0)


@given(st.lists(st.sampled_from(["cpu@a", "cpu@b", "cuda:0@c", "cuda:1@c", "cuda:0@d"]), max_size=9), st.data())
def test_wide_units_start_where_they_can_and_share_no_slot(devices: list[str], data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.integers(1, 5), max_size=5))
    slots, units = waiting(" ".join(devices), *(Unit((num,), slots=width) for num, width in enumerate(widths)))
    room = {each: len(set(own) if "cuda" in own[0] else own) for each in "abcd" if (own := on(devices, each))}
    running: dict[int, tuple[int, ...]] = {}
    while True:
        for number, got in taken(units):
            assert len(got) == widths[number]
            assert not {index for each in running.values() for index in each} & set(got)
            machines = {devices[index][-1] for index in got}
            assert len(machines) == 1 or widths[number] > max(room.values())
            running[number] = got
        if not running:
            break
        for index in running.pop(data.draw(st.sampled_from(sorted(running)))):
            slots.free(index)
    assert [width for num, width in enumerate(widths) if num in units] == [w for w in widths if w > slots.capacity]
    assert slots.capacity == sum(room.values())


def on(devices: list[str], machine: str) -> list[str]:
    return [device for device in devices if device.endswith(machine)]
