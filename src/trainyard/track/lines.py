"""Lines of a journal: records as JSON, in which NaN and infinities are names."""

from __future__ import annotations

import json
import math
from typing import Any

Record = dict[str, Any]

LAST_STEP = 2**63 - 1
"""The last step that MLflow accepts."""
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
    kind, record["time"] = record["kind"], float(record["time"])
    if "step" in record:
        record["step"] = int(record["step"])
        if abs(record["step"]) > LAST_STEP:
            raise ValueError
    if kind == "metrics":
        record["values"] = {name: float(value) for name, value in record["values"].items()}
    elif kind == "array":
        record["value"] = _decode(record["value"])
    return record


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) if isinstance(item, list | str) else item for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value
