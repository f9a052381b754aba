"""Differences between the identity by which a sweep was recorded and that of a proposer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from trainyard.config.sweepers import option_of

_NOT_COMPARED = ("versions", "warm_start")
"""Keys that are recorded, and not compared: the trials of a warm start follow from its name."""
_NAMES = {"warm_start_from": "warm_start"}
"""Settings whose name in an identity differs."""
_DEFAULTS = {"learn_from": "all"}
"""Values that are not recorded."""
_SHOWN = 200  # characters of a value


def is_population(identity: Mapping[str, Any]) -> bool:
    """Return whether this is the identity of population-based training."""
    return identity.get("sweeper") == "pbt"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two identities, as texts such as `order: any (now job)`; only the kinds if
    these differ.

    Args:
        before: as it was recorded, in JSON.
        now: that of a proposer.
    """
    found = json.loads(json.dumps(now))
    if (own := _kind(before)) != (other := _kind(found)):
        return [f"{own} (now {other})"]
    told: list[str] = []
    for key in dict.fromkeys([*before, *found]):
        if key not in _NOT_COMPARED:
            default = _DEFAULTS.get(key)
            told += _differences(_NAMES.get(key, key), before.get(key, default), found.get(key, default))
    return told


def _kind(identity: Mapping[str, Any]) -> str:
    """Return the kind of a proposer, for users."""
    if "sampler" in identity:
        return "hydra/sweeper=search"
    if "sweeper" in identity:
        return f"hydra/sweeper={identity['sweeper']}"
    return "a grid with a pruner" if identity else "a grid without a pruner"


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
        return option_of(value["_target_"])
    told = "not set" if value is None else json.dumps(value) if isinstance(value, dict | list) else str(value)
    return told if len(told) <= _SHOWN else f"{told[:_SHOWN]}…"
