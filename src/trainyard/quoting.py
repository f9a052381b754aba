"""Quoting of values in overrides for Hydra, and of words in commands for a shell; names of folders in messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from trainyard.errors import listed

_PLAIN = re.compile(r"[A-Za-z0-9_/+.%*@?|:-]+")
_TYPED = re.compile(r"null|true|false|[+-]?(inf|nan|[\d._]+(e[+-]?\d+)?)", re.IGNORECASE)  # no texts, unless quoted
_BACKSLASHES = re.compile(r'(\\*)("|$)')


def override(key: str, value: str | Path) -> str:
    """Return the override that sets a key to this text.

    In Hydra's quoted strings, `\\` is an escape character only before `"` and at the end
    (https://hydra.cc/docs/advanced/override_grammar/basic/#quoted-values).

        >>> override("hydra.run.dir", "outputs/mine")
        'hydra.run.dir=outputs/mine'
        >>> override("hydra.run.dir", "lr=1, seed=2")
        'hydra.run.dir="lr=1, seed=2"'
    """
    text = str(value)
    if _PLAIN.fullmatch(text) and not _TYPED.fullmatch(text):
        return f"{key}={text}"
    escaped = _BACKSLASHES.sub(lambda found: found[1] * 2 + (f"\\{found[2]}" if found[2] else ""), text)
    return f'{key}="{escaped}"'


def shell_override(key: str, value: str | Path) -> str:
    """Return the override that sets a key to this text, quoted for a shell."""
    return quote(override(key, value))


def shell_path(path: str | Path) -> str:
    """Return a path quoted for a shell."""
    return quote(str(path))


def named(folders: Sequence[Path]) -> str:
    """Return folders as a text for a message.

    >>> named([Path("outputs"), Path("multirun")]), named([Path()])
    ('outputs and multirun', 'the current folder')
    """
    return listed("the current folder" if folder == Path() else folder for folder in folders)
