"""The checks of arguments that several data sets share."""

from __future__ import annotations

import operator
from pathlib import Path

from trainyard.errors import ConfigError


def whole(key: str, value: object, minimum: int = 1) -> int:
    """`value` as an int, or a ConfigError where it is no whole number of at least `minimum`."""
    accepted = f"a whole number of at least {minimum}"
    if isinstance(value, bool):
        raise ConfigError(key, value, accepted)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(key, value, accepted) from None
    if number < minimum:
        raise ConfigError(key, value, accepted)
    return number


def number(key: str, value: object, minimum: float = 0.0) -> float:
    """`value` as a float, or a ConfigError where it is no finite number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value < float("inf"):
        raise ConfigError(key, value, f"a number of at least {minimum:g}")
    return float(value)


def flag(key: str, value: object) -> bool:
    """`value`, or a ConfigError where it is neither true nor false."""
    if not isinstance(value, bool):
        raise ConfigError(key, value, "true or false")
    return value


def existing_file(key: str, value: object) -> Path:
    """The file at `value` (`~` is the home folder), or a ConfigError that offers the nearest name in its folder."""
    if not isinstance(value, str | Path) or not str(value):
        raise ConfigError(key, value, "the path of a file")
    path = Path(value).expanduser()
    if path.is_file():
        return path
    folder = path.parent
    if not folder.is_dir():
        raise ConfigError(key, str(value), "the path of a file", hint=f"There is no folder {str(folder.absolute())!r}.")
    names = [str(Path(value).with_name(entry.name)) for entry in folder.iterdir() if entry.is_file()]
    raise ConfigError(
        key, str(value), "the path of a file", options=names, hint=f"Looked in {str(folder.absolute())!r}."
    )
