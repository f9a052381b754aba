"""Checks of the numbers that models are built from. Each returns the value, typed, or raises `ConfigError`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from trainyard.errors import ConfigError

T = TypeVar("T")


def whole(key: str, value: object, minimum: int = 1) -> int:
    """A whole number of at least `minimum`. `auto` gets this far only where the data states no such number."""
    accepted = f"a whole number of at least {minimum}"
    if value == "auto":
        raise ConfigError(key, value, accepted, hint="The data states no value for it here, so a number is needed.")
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(key, value, accepted)
    return value


def sizes(key: str, value: object, at_least: int = 0) -> list[int]:
    """A list of `at_least` or more whole numbers, each at least 1."""
    accepted = "a list of whole numbers, each at least 1" + (f", with {at_least} or more of them" if at_least else "")
    if not isinstance(value, (list, tuple)) or len(value) < at_least:
        raise ConfigError(key, value, accepted)
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in value):
        raise ConfigError(key, value, accepted)
    return list(value)


def share(key: str, value: object) -> float:
    """A number in [0, 1), such as a dropout rate."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ConfigError(key, value, "a number of at least 0 and below 1")
    return float(value)


def choice(key: str, value: object, options: Mapping[str, T]) -> T:
    """What `options` holds under the name `value`."""
    if not isinstance(value, str) or value not in options:
        raise ConfigError(key, value, f"one of {', '.join(options)}", options=options)
    return options[value]
