"""Lines of a journal: records as JSON, in which NaN and infinities are names."""

from __future__ import annotations

import json
import math
from typing import Any

Record = dict[str, Any]

LAST_STEP = 2**63 - 1
"""The last step that MLflow accepts."""
LAST_TIME = 253_402_300_800.0
"""The end of the year 9999, in Unix seconds: the calendar of Python ends there."""
_TEXTS = {
    "status": ("status",),
    "array": ("name",),
    "artifact": ("path", "to"),
    "model": ("checkpoint", "loader"),
    "register": ("name", "alias"),
}
"""By kind of record: the fields that are texts."""
_MAPPINGS = {"tags": "tags", "linked_tags": "tags", "params": "params"}
"""By kind of record: the field that maps names to texts."""
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def parsed(line: bytes) -> Record | None:
    """Return the record of a line; None if the line is not a record."""
    try:
        return _numbers(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def encode(value: Any) -> Any:
    """Return `value` with every NaN and infinity in it replaced by its name, as strict JSON requires."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def _numbers(record: Record) -> Record:
    """Return a record with numbers instead of their names.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, OverflowError: a field is missing, or has another type.
    """
    kind, record["time"] = record["kind"], float(record["time"])
    if not isinstance(kind, str) or not abs(record["time"]) < LAST_TIME:
        raise ValueError
    if "step" in record:
        record["step"] = int(record["step"])
        if abs(record["step"]) > LAST_STEP:
            raise ValueError
    if kind == "metrics":
        record["values"] = {name: float(value) for name, value in record["values"].items()}
        if not isinstance(record["step"], int) or not isinstance(record.get("epoch", 0), int):
            raise TypeError
        return record
    if kind == "array":
        record["value"] = _decode(record["value"])
    elif kind == "inputs":
        if not all(isinstance(each[name], str) for each in record["inputs"] for name in ("name", "digest", "context")):
            raise TypeError
    elif kind in _MAPPINGS and not _is_text_by_name(record[_MAPPINGS[kind]]):
        raise TypeError
    is_withdrawn = kind == "model" and record["checkpoint"] is None  # see `Journal.withdraw_model`
    if not is_withdrawn and not all(isinstance(record[name], str) for name in _TEXTS.get(kind, ())):
        raise TypeError
    return record


def _is_text_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) if isinstance(item, list | str) else item for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value
