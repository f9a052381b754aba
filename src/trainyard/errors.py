"""Exceptions whose messages are written for users."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Return the option nearest to `name`, or None if none is close; names that differ only in case are nearest."""
    options = list(options)
    lower = {option.lower(): option for option in reversed(options)}
    same = lower.get(name.lower())
    if same is not None and name not in options:
        return same
    if found := difflib.get_close_matches(name, options, n=1, cutoff=0.6):
        return found[0]
    found = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.6)
    return lower[found[0]] if found else None


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: `1 run`, `2 runs`.

    Args:
        number: the number.
        one: the noun in the singular.
        many: the plural. Default: `one` with an s.
    """
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def some(names: Iterable[str], limit: int) -> str:
    """Return the first names, at most `limit`, and the number of the others: `a, b and 3 more`."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def listed(names: Iterable[object]) -> str:
    """Return all names as a text: `a`, `a and b`, `a, b and c`."""
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last


def first_line(error: BaseException, otherwise: str | None = None) -> str:
    """Return the first line of the message of an error.

    Args:
        error: the error.
        otherwise: the result if there is no message; None: the name of the class of the error.
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__ if otherwise is None else otherwise)


def quoted(text: str) -> str:
    r"""Return a string in quotes as the user wrote it: `'\d+'`. Only control characters are escaped."""
    mark = '"' if "'" in text and '"' not in text else "'"
    whole = text if text.isprintable() else "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    return f"{mark}{whole}{mark}"


_LONG = 400
"""Maximum number of characters of a representation that an error shows completely."""
_DEEPEST = 20  # a list may contain itself


class TrainyardError(Exception):
    """An error with a complete message; it is shown without a traceback.

    Attributes:
        status: the exit status of a command that it ends.
    """

    status = 2


class ConfigError(TrainyardError):
    """A value of the config is invalid.

    Args:
        key: its place in the config. A part names its own argument (`batch_size`); the builder of the
            part prefixes the group's name (`data.batch_size`).
        given: the given value.
        accepted: what would be accepted, as the end of the sentence "Expected …".
        hint: an additional sentence.
        options: accepted names; the message offers the nearest to `given`.
    """

    def __init__(self, key: str, given: object, accepted: str, *, hint: str = "", options: Iterable[str] = ()) -> None:
        super().__init__(key, given, accepted)
        self.key = key
        self.given = given
        self.accepted = accepted
        self.hint = hint
        self.options = tuple(options)

    def under(self, prefix: str) -> ConfigError:
        """Return the same error with its key under `prefix`: `batch_size` under `data` is `data.batch_size`."""
        key = ".".join(part for part in (prefix, self.key) if part)
        error = type(self)(key, self.given, self.accepted, hint=self.hint, options=self.options)
        error.__cause__ = self.__cause__
        return error

    def __str__(self) -> str:
        text = f"{self.key}: {self._problem()}"
        # null is no misspelled name, unless an option means the same.
        options = [each for each in self.options if each.lower() == "none"] if self.given is None else self.options
        close = nearest(str(self.given), options)
        if close is not None:
            text += f" Did you mean {quoted(close)}?"
        return f"{text} {self.hint}".rstrip()

    def _problem(self) -> str:
        return f"{_shown(self.given)} is invalid. Expected {self.accepted}."


class FindingError(ConfigError):
    """What a value of the config leads to is invalid, such as the shape of the data.

    Args:
        key: the key of the config that leads to it.
        given: what was found, as a clause: "the targets have the shape [40, 2]".
        accepted: what would be accepted, as the end of the sentence "Expected …".
    """

    def _problem(self) -> str:
        return f"{self.given}. Expected {self.accepted}."


class VariableError(ConfigError):
    """The value of an environment variable is invalid; its key is the name of the variable, in every part."""

    def under(self, prefix: str) -> ConfigError:
        """Return the same error: a variable is in no group of the config."""
        return super().under("")


class UnknownMetricError(ConfigError):
    """No metric has the name in a config.

    Args:
        key: the key of the config that names the metric.
        given: the name.
        accepted: the sentence that lists the metrics, without a full stop: "This run computes val/loss".
    """

    def _problem(self) -> str:
        return f"No metric named {_shown(self.given)}. {self.accepted}."


class _Short(reprlib.Repr):
    """Representation of a few entries of a nest; for arrays and tensors, only the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlist, self.maxtuple, self.maxset, self.maxdict = 2, 3, 2, 4
        self.maxstring = self.maxother = 120

    def repr_str(self, x: str, level: int) -> str:
        """Return a text in quotes, without its middle if it is long."""
        half = (self.maxstring - 3) // 2
        return quoted(x if len(x) <= self.maxstring else f"{x[:half]}...{x[-half:]}")

    def repr_instance(self, x: Any, level: int) -> str:
        """Return the representation of anything but a container or a text."""
        shape = getattr(x, "shape", None)
        return super().repr_instance(x, level) if shape is None else f"{type(x).__name__} of shape {list(shape)}"


def _shown(given: object) -> str:
    """Return the representation of a value on one line, shortened if it is long."""
    whole = _whole(given)
    return whole if len(whole) <= _LONG and "\n" not in whole else _Short().repr1(given, 3).replace("\n", " ")


def _whole(given: object, depth: int = 0) -> str:
    """Return the representation of a value, with its texts as the user wrote them."""
    if type(given) is str:
        return quoted(given)
    if depth < _DEEPEST:
        if type(given) is list:
            return f"[{', '.join(_whole(each, depth + 1) for each in given)}]"
        if type(given) is tuple and len(given) > 1:
            return f"({', '.join(_whole(each, depth + 1) for each in given)})"
        if type(given) is dict:
            pairs = (f"{_whole(key, depth + 1)}: {_whole(each, depth + 1)}" for key, each in given.items())
            return f"{{{', '.join(pairs)}}}"
    return repr(given)


class StackDivided(TrainyardError):  # noqa: N818 - a finding, not a fault: the members train on
    """The members of a stack continue in several stacks from their last checkpoints; the message is the reason.

    Args:
        reason: the reason, on one line.
        groups: the members of each stack, by index.
    """

    def __init__(self, reason: str, groups: Sequence[Sequence[int]]) -> None:
        super().__init__(reason, groups)
        self.reason = reason
        self.groups = groups

    def __str__(self) -> str:
        return self.reason


class Unfusable(TrainyardError):  # noqa: N818 - a finding, not a fault: the members train on their own
    """The members cannot be stacked; the message is the reason, as the plan of a sweep shows it."""


class PlacesDiffer(Unfusable):
    """The members could be stacked if they were at the same position in the training, and no other job could join; the
    message is the reason."""


class JobPaused(TrainyardError):  # noqa: N818 - a state, not a fault: the job goes on when it is resumed
    """A job of a sweep has ended at the checkpoint at which it had to pause; the message names the position."""
