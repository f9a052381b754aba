"""Switch for private functions of libraries (`env.fast_paths`), and the list of them.

Each function has a check and, where possible, a public replacement. The replacement is used if the library has removed
or changed the private function, and always while fast paths are off. This module imports none of the libraries.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Internal:
    """A private part of a library.

    Attributes:
        name: its path in the library.
        used_by: the modules of this package that depend on it.
        gain: the benefit of the private part.
        replacement: the public equivalent.
        check: tests the private part on a few numbers; an exception or False means that the library has changed it.
    """

    name: str
    used_by: tuple[str, ...]
    gain: str
    replacement: str
    check: Callable[[], bool]


INTERNALS: dict[str, Internal] = {}
"""The registered private parts, by name."""


class _Switch:
    on = True
    listeners: tuple[Callable[[], object], ...] = ()


def register(internals: Iterable[Internal], when_switched: Callable[[], object]) -> None:
    """Add private parts to the list.

    Args:
        internals: the parts.
        when_switched: called when fast paths are switched on or off.
    """
    INTERNALS.update((internal.name, internal) for internal in internals)
    _Switch.listeners += (when_switched,)


def fast_paths() -> bool:
    """Return whether fast paths are on in this process."""
    return _Switch.on


def use_fast_paths(on: bool) -> None:
    """Use the private parts, or their public replacements, in all objects that this process builds from now on."""
    if on != _Switch.on:
        _Switch.on = on
        for listener in _Switch.listeners:
            listener()


def usable(name: str) -> bool:
    """Return whether to use a private part: fast paths are on, and the library has it in the known form."""
    return _Switch.on and _works(name)


def works(name: str) -> bool:
    """Return whether the library has a private part in the known form; for parts that are also used when fast paths are
    off."""
    return _works(name)


@contextmanager
def _generator_kept() -> Iterator[None]:
    """Restore the state of torch's generator: a check runs at the first use of a part, and may draw random numbers."""
    torch = sys.modules.get("torch")
    with nullcontext() if torch is None else torch.random.fork_rng(devices=()):
        yield


@cache
def _works(name: str) -> bool:
    try:
        with _generator_kept():
            works = INTERNALS[name].check()
    except Exception:  # any error means that the part has changed
        works = False
    if not works:
        log.warning("%s is missing or has changed. Fallback: %s.", name, INTERNALS[name].replacement)
    return works
