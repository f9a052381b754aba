"""Differences between the identity by which a sweep was recorded and that of a proposer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

FOR_PEOPLE = "versions"
"""A key that is recorded, and not compared."""
_SHOWN = 200  # characters of a value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two identities, as texts such as `order: any (now job)`.

    Args:
        before: as it was recorded, in JSON.
        now: that of a proposer.
    """
    found = json.loads(json.dumps(now))
    keys = [key for key in dict.fromkeys([*before, *found]) if key != FOR_PEOPLE]
    told = [each for key in keys for each in _differences(key, before.get(key), found.get(key))]
    return told if before and found else told[:1]  # one of the two is a grid, which has no settings


def _differences(key: str, before: Any, now: Any) -> Iterator[str]:
    """Yield the differences of a value: of two configs of one class those of their arguments."""
    if before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict) and before.get("_target_") == now.get("_target_"):
        for name in dict.fromkeys([*before, *now]):
            yield from _differences(f"{key}.{name}", before.get(name), now.get(name))
    else:
        yield f"{key}: {_told(before)} (now {_told(now)})"


def _told(value: Any) -> str:
    if isinstance(value, dict) and "_target_" in value:
        return str(value["_target_"])
    told = "not set" if value is None else json.dumps(value) if isinstance(value, dict | list) else str(value)
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN]}…"
