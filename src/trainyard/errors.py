"""What users are told when something they wrote cannot work."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option that `name` was most likely meant to be, or None where nothing is close."""
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return found[0] if found else None


class TrainyardError(Exception):
    """An error that its message explains in full: it is shown without a traceback.

    Attributes:
        status: the exit status of a command that it ends.
    """

    status = 2


class ConfigError(TrainyardError):
    """A value of the config that cannot work.

    Args:
        key: where it stands. A part names its own argument (`batch_size`); whoever builds the part
            puts the group's name before it (`data.batch_size`).
        given: what was given.
        accepted: what would be accepted, as the end of the sentence "accepted: …".
        hint: a further sentence, if one helps.
        options: names that were possible; the nearest to `given` is offered.
    """

    def __init__(self, key: str, given: object, accepted: str, *, hint: str = "", options: Iterable[str] = ()) -> None:
        super().__init__(key, given, accepted)
        self.key = key
        self.given = given
        self.accepted = accepted
        self.hint = hint
        self.options = tuple(options)

    def under(self, prefix: str) -> ConfigError:
        """The same error, its key seen from further up: `batch_size` under `data` is `data.batch_size`."""
        key = ".".join(part for part in (prefix, self.key) if part)
        error = ConfigError(key, self.given, self.accepted, hint=self.hint, options=self.options)
        error.__cause__ = self.__cause__
        return error

    def __str__(self) -> str:
        text = f"{self.key}: {self.given!r} given; accepted: {self.accepted}."
        close = nearest(str(self.given), self.options)
        if close is not None:
            text += f" Did you mean {close!r}?"
        return f"{text} {self.hint}".rstrip()


class Unfusable(TrainyardError):  # noqa: N818 - a finding, not a fault: the members train on their own
    """The members cannot be stacked; the message is the reason, as the plan of a sweep shows it."""
