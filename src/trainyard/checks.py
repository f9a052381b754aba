"""Checks of single values: numbers, integers, booleans, names, files.

Each function takes the key of a value, the value, and the accepted range. It returns the converted value, or raises
`ConfigError`. `True` and `False` are booleans only, never numbers.

    >>> integer("interval", 10, at_least=1)
    10
    >>> integer("interval", True, at_least=1)
    Traceback (most recent call last):
    trainyard.errors.ConfigError: interval: True is invalid. Expected an integer of at least 1.
    >>> number("decay", 0, at_least=0, below=1)
    0.0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeGuard

from trainyard.errors import ConfigError, counted, quoted


def is_integer(value: Any, *, at_least: int | None = None, at_most: int | None = None) -> TypeGuard[int]:
    """Return whether `value` is a 64-bit integer of Python or NumPy within the bounds. 3.0 is not an integer."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not -(2**63) <= int(value) < 2**63:
        return False
    return (at_least is None or int(value) >= at_least) and (at_most is None or int(value) <= at_most)


def is_number(
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    finite: bool = True,
) -> TypeGuard[float]:
    """Return whether `value` is an integer or a float, of Python or NumPy, within the bounds. NaN is not a number.

    Unless `finite` is false, infinity and integers that are too large for a float are not numbers either.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    real = _float(value)
    return (
        not math.isnan(real)
        and not (finite and math.isinf(real))
        and (above is None or real > above)
        and (at_least is None or real >= at_least)
        and (below is None or real < below)
        and (at_most is None or real <= at_most)
    )


def integer(
    key: str, value: object, *, at_least: int | None = None, at_most: int | None = None, other: str = ""
) -> int:
    """Return `value` as an int.

    Args:
        key: the key of the value.
        value: the given value.
        at_least: the smallest integer that is accepted; None for no limit.
        at_most: the largest.
        other: other values that the caller accepts and has already handled, such as "null to keep all"; for the
            message.

    Raises:
        ConfigError: the value is not an integer, or not within the bounds.
    """
    if is_integer(value, at_least=at_least, at_most=at_most):
        return int(value)
    if isinstance(value, Integral) and at_most is None and int(value) >= 2**63:
        at_most = 2**63 - 1
    if isinstance(value, Integral) and at_least is None and int(value) < -(2**63):
        at_least = -(2**63)
    accepted = f"an integer{_bounds(at_least=at_least, at_most=at_most)}"
    hint = (
        "No value can be inferred for auto here. Give an integer." if isinstance(value, str) and value == "auto" else ""
    )
    raise ConfigError(key, value, _either(accepted, other), hint=hint)


def seed_number(key: str, value: object, *, other: str = "") -> int:
    """Return `value`, a seed: an integer from 0 to 2**63 - 1, which every generator accepts.

    Args:
        key: the key of the value.
        value: the given value.
        other: other values that the caller accepts and has already handled; for the message.

    Raises:
        ConfigError: the value is not such an integer.
    """
    if is_integer(value, at_least=0, at_most=2**63 - 1):
        return int(value)
    raise ConfigError(key, value, _either("a non-negative integer of at most 63 bits", other))


def integers(key: str, value: object, *, at_least: int | None = None, length: int = 0) -> list[int]:
    """Return the list or tuple `value` as a list of at least `length` ints.

    Raises:
        ConfigError: the value is not a list or tuple, is too short, or an element is not such an integer.
    """
    if (
        isinstance(value, list | tuple)
        and len(value) >= length
        and all(is_integer(each, at_least=at_least) for each in value)
    ):
        return [int(each) for each in value]
    each = f", each{_bounds(at_least=at_least)}" if at_least is not None else ""
    more = f", with at least {counted(length, 'element')}" if length else ""
    raise ConfigError(key, value, f"a list of integers{each}{more}")


def strings(key: str, value: object, *, other: str = "") -> list[str]:
    """Return the list or tuple `value` as a list of strings.

    Args:
        key: the key of the value.
        value: the given value.
        other: other values that the caller accepts and has already handled; for the message.

    Raises:
        ConfigError: the value is not a list or tuple, or an element is not a string.
    """
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        return list(value)
    raise ConfigError(key, value, _either("a list of strings", other))


def number(
    key: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    finite: bool = True,
    unit: str = "",
    other: str = "",
) -> float:
    """Return `value`, an integer or a float, as a float.

    Args:
        key: the key of the value.
        value: the given value.
        above, below: exclusive bounds; None for no limit.
        at_least, at_most: inclusive bounds; None for no limit.
        finite: reject infinity. NaN is always rejected.
        unit: the unit of the number, such as "seconds"; for the message.
        other: other values that the caller accepts and has already handled, such as "null for none"; for the message.

    Raises:
        ConfigError: the value is not a number, or not within the bounds.
    """
    if is_number(value, above=above, at_least=at_least, below=below, at_most=at_most, finite=finite):
        return float(value)
    infinite = isinstance(value, Real) and math.isinf(_float(value))
    kind = f"{'a finite' if finite and infinite else 'a'} number{f' of {unit}' if unit else ''}"
    bounds = _bounds(above=above, at_least=at_least, below=below, at_most=at_most)
    raise ConfigError(key, value, _either(kind + bounds, other))


def boolean(key: str, value: object, *, other: str = "") -> bool:
    """Return `value`, a boolean.

    Args:
        key: the key of the value.
        value: the given value.
        other: other values that the caller accepts and has already handled; for the message.

    Raises:
        ConfigError: the value is neither true nor false.
    """
    if isinstance(value, bool):
        return value
    raise ConfigError(key, value, _either("true or false", other))


def choice(key: str, value: object, options: Collection[str], *, other: str = "") -> str:
    """Return `value`, one of `options`.

    Args:
        key: the key of the value.
        value: the given value.
        options: the accepted names, or a mapping whose keys are the accepted names.
        other: other values that the caller accepts and has already handled; for the message.

    Raises:
        ConfigError: the value is not one of the names.
    """
    if isinstance(value, str) and value in options:
        return value
    raise ConfigError(key, value, _either(f"one of {', '.join(options)}", other), options=options)


def text(key: str, value: object, *, at_most: int, other: str = "") -> str:
    """Return `value` as a single-line string; a number is converted.

    Args:
        key: the key of the value.
        value: the given value.
        at_most: the maximum number of characters.
        other: other values that the caller accepts and has already handled; for the message.

    Raises:
        ConfigError: the value is not a string, empty, or too long.
    """
    given = str(value) if is_number(value) else value
    if not isinstance(given, str) or not given.strip() or not given.isprintable() or len(given) > at_most:
        shown = f"{given[:40]}… ({len(given)} characters)" if isinstance(given, str) and len(given) > at_most else value
        accepted = f"a non-empty single-line string of at most {at_most} printable characters"
        raise ConfigError(key, shown, _either(accepted, other))
    return given


def existing_file(key: str, value: object, *, other: str = "") -> Path:
    """Return the path of the file at `value`, where `~` is the home folder.

    Args:
        key: the key of the value.
        value: the given value.
        other: other values that the caller accepts and has already handled; for the message.

    Raises:
        ConfigError: the file does not exist; the message suggests the nearest name in its folder.
    """
    if not isinstance(value, str | Path) or not str(value):
        raise ConfigError(key, value, _either("the path of an existing file", other))
    path = Path(value).expanduser()
    if is_file(path):
        return path
    folder, whole = path.parent, str(path.absolute())
    if not is_folder(folder):
        raise ConfigError(
            key,
            str(value),
            "the path of an existing file",
            hint=f"The folder {quoted(str(folder.absolute()))} does not exist.",
        )
    raise ConfigError(
        key,
        str(value),
        "the path of an existing file",
        options=neighbors(value, is_file),
        hint=f"{quoted(whole)} is a folder."
        if is_folder(path)
        else f"Trainyard looked in {quoted(str(folder.absolute()))}.",
    )


def neighbors(value: str | Path, fits: Callable[[Path], bool]) -> list[str]:
    """Return the paths of the entries that fit in the folder of `value`, written as `value` is: the nearest names."""
    path = Path(value)
    return [str(path.parent / entry.name) for entry in _entries(path.expanduser().parent) if fits(entry)]


def existing_folder(key: str, value: object) -> Path:
    """Return the path of the folder at `value`.

    Raises:
        ConfigError: the folder does not exist; the message suggests the nearest name.
    """
    accepted = "the path of an existing folder"
    if not isinstance(value, str | Path) or not str(value):
        raise ConfigError(key, value, accepted)
    path = Path(value)
    if is_folder(path):
        return path
    whole = path.absolute()
    hint = f"Trainyard looked for {quoted(str(whole))}." if path != whole else ""
    if is_file(path):
        hint = f"{quoted(str(whole))} is a file."
    names = [str(path.with_name(entry.name)) for entry in _entries(whole.parent) if is_folder(entry)]
    raise ConfigError(key, str(value), accepted, options=names, hint=hint)


def is_file(path: Path) -> bool:
    """Return whether there is a file at a path; False also for a path that the system refuses, such as a long name."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Return whether there is a folder at a path; False also for a path that the system refuses."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _entries(folder: Path) -> list[Path]:
    """Return the entries of a folder; none if it cannot be read."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond the largest float
        return math.inf if value > 0 else -math.inf


def _bounds(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> str:
    if at_least is not None and at_most is not None:
        return f" from {_shown(at_least)} to {_shown(at_most)}"
    bounds = {"above": above, "of at least": at_least, "below": below, "of at most": at_most}
    words = [f"{word} {_shown(bound)}" for word, bound in bounds.items() if bound is not None]
    return f" {' and '.join(words)}" if words else ""


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:.12g}"


def _either(accepted: str, other: str) -> str:
    return f"{accepted}, or {other}" if other else accepted
