"""Records of the scheduler's events in the manifest, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from trainyard.sweep.events import (
    Asked,
    Began,
    Emptied,
    Ended,
    Event,
    Inherited,
    Joined,
    Origin,
    Paused,
    Proposed,
    Queued,
    Reported,
    SlotsGained,
    SlotsLost,
    Started,
    Stopping,
    Unit,
)
from trainyard.track.sweep_position import Rungs

Record = dict[str, Any]


def to_record(event: Event) -> Record:
    """Return the record of an event, without its time."""
    match event:
        case Began(slots):
            return {"kind": "began", "slots": slots}
        case SlotsGained(slots):
            return {"kind": "slots", "gained": [list(each) for each in slots]}
        case SlotsLost(indices):
            return {"kind": "slots", "lost": list(indices)}
        case Queued(units, why):
            return {"kind": "queued", "why": why, "units": [_unit(unit) for unit in units]}
        case Started(num, attempt):
            return {"kind": "state", "num": num, "state": "running", "attempt": attempt}
        case Joined(unit, nums):
            return {"kind": "joined", "unit": unit, "nums": list(nums)}
        case Emptied(unit):
            return {"kind": "emptied", "unit": unit}
        case Inherited():
            own = {"kind": "inherited", "num": event.num, "source": event.source, "at": event.at}
            more = {"keys": list(event.keys), "checkpoint": event.checkpoint}
            return {**own, "overrides": list(event.overrides), **more}
        case Reported(num, at, value, metrics):
            report = {"kind": "report", "num": num, "at": at, "value": value}
            return {**report, "metrics": dict(metrics)} if metrics else report
        case Asked(num, wish, why):
            return {"kind": "asked", "num": num, "wish": wish, "why": why}
        case Paused(num, seconds, width, by_hand):
            own = {"kind": "state", "num": num, "state": "paused", **_span(seconds, width)}
            return {**own, "by_hand": True} if by_hand else own
        case Ended(num, state, seconds, objective, error, width):
            own = {"kind": "state", "num": num, "state": state, **_span(seconds, width)}
            return {**own, "objective": objective, "error": error}
        case Stopping(why):
            return {"kind": "stopping", "why": why}
        case Proposed(num, overrides, rungs, subdir, origin, note):
            own = {"kind": "job", "num": num, "overrides": list(overrides), "subdir": subdir}
            own |= {} if rungs is None else {"rungs": record_of(rungs)}
            own |= {} if origin is None else {"origin": asdict(origin)}
            return own if note is None else {**own, "note": note}


def event_of(record: Mapping[str, Any]) -> Event | None:
    """Return the event that a record of a manifest stands for; None if it is of another kind."""
    make = _EVENTS.get(record["kind"])
    return None if make is None else make(record)


def record_of(rungs: Rungs) -> Record:
    """Return rungs as a mapping."""
    return {"at": list(rungs.at), "by": rungs.by, "until": rungs.until}


def rungs_of(value: Mapping[str, Any] | None) -> Rungs | None:
    """Return the rungs of a mapping."""
    return None if value is None else Rungs(tuple(value["at"]), value["by"], value["until"])


def origin_of(value: Mapping[str, Any] | None) -> Origin | None:
    """Return the origin of a mapping."""
    return None if value is None else Origin(**{**value, "keys": tuple(value["keys"])})


def _unit(unit: Unit) -> Any:
    """Return a unit as a list of its jobs, or as a mapping if there is more information."""
    more: Record = {}
    if unit.slots > 1:
        more["slots"] = unit.slots
    if unit.attempts:
        more["attempts"] = unit.attempts
    if unit.expected is not None:
        more["expected"] = unit.expected
    if unit.alone_on:
        more["alone_on"] = list(unit.alone_on)
    if unit.rungs is not None:
        more["rungs"] = record_of(unit.rungs)
    if unit.own_rungs:
        more["own_rungs"] = [[num, record_of(rungs)] for num, rungs in unit.own_rungs]
    if unit.fed:
        more["fed"] = True
    return {"nums": list(unit.nums), **more} if more else list(unit.nums)


def _unit_of(value: Any) -> Unit:
    if isinstance(value, list):
        return Unit(tuple(value))
    return Unit(
        tuple(value["nums"]),
        value.get("slots", 1),
        value.get("attempts", 0),
        value.get("expected"),
        tuple(value.get("alone_on", ())),
        rungs_of(value.get("rungs")),
        tuple((num, found) for num, each in value.get("own_rungs", ()) if (found := rungs_of(each)) is not None),
        value.get("fed", False),
    )


def _span(seconds: float, width: int) -> Record:
    return {"seconds": seconds} if width == 1 else {"seconds": seconds, "width": width}


def _slots(record: Mapping[str, Any]) -> Event:
    if "gained" in record:
        return SlotsGained(tuple((index, device) for index, device in record["gained"]))
    return SlotsLost(tuple(record["lost"]))


def _state(record: Mapping[str, Any]) -> Event:
    num, state = record["num"], record["state"]
    if state == "running":
        return Started(num, record.get("attempt", 1))
    span = record.get("seconds", 0.0), record.get("width", 1)
    if state == "paused":
        return Paused(num, *span, record.get("by_hand", False))
    return Ended(num, state, span[0], record.get("objective"), record.get("error"), span[1])


_EVENTS: dict[str, Callable[[Mapping[str, Any]], Event]] = {
    "began": lambda record: Began(record.get("slots", 0)),
    "slots": _slots,
    "job": lambda record: Proposed(
        record["num"],
        tuple(record["overrides"]),
        rungs_of(record.get("rungs")),
        record.get("subdir"),
        origin_of(record.get("origin")),
        record.get("note"),
    ),
    "queued": lambda record: Queued(tuple(map(_unit_of, record["units"])), record["why"]),
    "state": _state,
    "joined": lambda record: Joined(record["unit"], tuple(record["nums"])),
    "emptied": lambda record: Emptied(record["unit"]),
    "inherited": lambda record: Inherited(
        record["num"],
        record["source"],
        record["at"],
        tuple(record["overrides"]),
        tuple(record["keys"]),
        record["checkpoint"],
    ),
    "report": lambda record: Reported(
        record["num"],
        record["at"],
        float(record["value"]),
        tuple((name, float(value)) for name, value in record.get("metrics", {}).items()),
    ),
    "asked": lambda record: Asked(record["num"], record["wish"], record["why"]),
    "stopping": lambda record: Stopping(record["why"]),
}
