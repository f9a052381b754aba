"""Records of a manifest: the lines of its file, whether a line is a record, and the record of the application."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainyard.application import StartedAs
from trainyard.checks import is_integer, is_number
from trainyard.track.lines import LAST_TIME

_BLOCK = 1 << 20  # bytes that are parsed at once


def _plain(value: Any) -> Any:
    """Convert a number of numpy or torch to Python's, and anything else to its text."""
    try:
        return float(value)
    except Exception:
        return str(value)


encode = json.JSONEncoder(default=_plain).encode
"""Return the line of a record, without the end of the line."""


def parsed(content: bytes) -> Iterator[dict[str, Any]]:
    """Return the records in complete lines; lines that are not records are skipped."""
    return filter(is_record, _values(content))


def is_record(value: Any) -> bool:
    """Return whether a value is a record of a manifest; a record of an unknown kind is one.

    A line of something else, such as a line that was damaged by a crash of the machine, is not a record. The fields
    from which the jobs and their states are read have their types in a record.
    """
    if type(value) is not dict or type(value.get("kind")) is not str:
        return False
    check = _CHECKS.get(value["kind"])
    return check is None or check(value)


def application_of(manifest: Path) -> StartedAs | None:
    """Return how a sweep was last started, from its manifest, of which nothing else is read; None if it has no record
    of the application."""
    found = None
    with suppress(OSError), manifest.open("rb") as file:
        for line in file:
            if b'"application"' in line:
                with suppress(ValueError):
                    record = json.loads(line)
                    if is_record(record) and record["kind"] == "application":
                        found = StartedAs.of(record)
    return found


def _values(content: bytes) -> Iterator[Any]:
    lines = content.splitlines()
    size = max(1, _BLOCK * len(lines) // max(1, len(content)))
    for first in range(0, len(lines), size):
        block = lines[first : first + size]
        try:
            yield from json.loads(b"[" + b",".join(block) + b"]")  # much faster than line by line
        except ValueError:
            for line in block:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


def _is_job(record: Mapping[str, Any]) -> bool:
    lines = record.get("overrides")
    return (
        is_integer(record.get("num"), at_least=0)
        and type(lines) is list
        and all(type(line) is str for line in lines)
        and _is_text_or_none(record.get("subdir"))
        and _are_rungs_or_none(record.get("rungs"))
    )


def _is_state(record: Mapping[str, Any]) -> bool:
    return (
        is_integer(record.get("num"), at_least=0)
        and type(record.get("state")) is str
        and _is_text_or_none(record.get("error"))
        and is_number(record.get("seconds", 0), at_least=0)
        and is_integer(record.get("width", 1), at_least=1)
        and is_number(record.get("time", 0), below=LAST_TIME)
    )


def _is_begin(record: Mapping[str, Any]) -> bool:
    return is_number(record.get("time"), at_least=0, below=LAST_TIME)


def _is_application(record: Mapping[str, Any]) -> bool:
    texts = (record.get("module", 0), record.get("config_path"))
    return type(record.get("file")) is str and all(_is_text_or_none(text) for text in texts)


def _is_decisions(record: Mapping[str, Any]) -> bool:
    tasks = record.get("tasks")
    return type(tasks) is list and all(
        type(task) is dict
        and type(task.get("nums")) is list
        and all(is_integer(num) for num in task["nums"])
        and is_integer(task.get("threads"), at_least=1)
        and is_integer(task.get("width", 0), at_least=0)
        for task in tasks
    )


def _is_inheritance(record: Mapping[str, Any]) -> bool:
    numbers = [record.get(name) for name in ("num", "source", "at")]
    lists = [record.get(name) for name in ("keys", "overrides")]
    return all(is_integer(number, at_least=0) for number in numbers) and all(type(each) is list for each in lists)


def _is_report(record: Mapping[str, Any]) -> bool:
    return is_integer(record.get("num"), at_least=0) and is_number(record.get("at"), at_least=0)


def _are_rungs_or_none(value: Any) -> bool:
    return value is None or (type(value) is dict and value.get("by") in ("epoch", "iter"))


def _is_text_or_none(value: Any) -> bool:
    return value is None or type(value) is str


_CHECKS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "job": _is_job,
    "state": _is_state,
    "began": _is_begin,
    "application": _is_application,
    "decisions": _is_decisions,
    "inherited": _is_inheritance,
    "report": _is_report,
}
