"""Names of a run's metrics, params, tags and arrays in MLflow."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from trainyard.track.shipper.sanitize import MAX_NAME, clean_name

KnownNames = dict[str, dict[str, str]]
"""For each kind (`metric`, `param`, `tag`, `array`), the name in MLflow of each name of a run."""


class Names:
    """Names of one run in MLflow: each is the nearest name that MLflow accepts, and no two names of a kind become
    equal.

    The first name receives the nearest accepted name. A later name that would be equal to it receives a suffix, which
    is a hash of only the later name. The decisions are stored in `known`, and do not change.

    Args:
        known: the names so far; new names are added to this mapping.
        tell: a function that is called with a message when a name receives a suffix.
    """

    def __init__(self, known: KnownNames, tell: Callable[[str], None]) -> None:
        self._known = known
        self._tell = tell

    def __call__(self, kind: str, name: str) -> str:
        """Return the name in MLflow of a name of the run."""
        of_kind = self._known.setdefault(kind, {})
        if name not in of_kind:
            of_kind[name] = _free(name, set(of_kind.values()))
            if of_kind[name] != clean_name(name):
                self._tell(_message(kind, name, of_kind))
        return of_kind[name]


def renamed(known: KnownNames) -> list[str]:
    """Return a message for each name that has a suffix."""
    return [
        _message(kind, name, of_kind)
        for kind, of_kind in known.items()
        for name, given in of_kind.items()
        if given != clean_name(name)
    ]


def _free(name: str, taken: set[str]) -> str:
    clean = found = clean_name(name)
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    digits = 6
    while found in taken:
        found = f"{clean[: MAX_NAME - digits - 1]}-{digest[:digits]}"
        digits += 1
    return found


def _message(kind: str, name: str, of_kind: dict[str, str]) -> str:
    first = next((other for other, given in of_kind.items() if given == clean_name(name)), clean_name(name))
    return (
        f"The {kind} {name!r} is named {of_kind[name]} in MLflow, because MLflow's naming rules would make "
        f"this name equal to {first!r}."
    )
