"""Packages that the check needs: the lines of requirements.txt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_suffix(".txt")
_LINE = re.compile(r"(?P<package>[\w.-]+)  # (?P<module>\w+): (?P<use>.+)")


@dataclass(frozen=True)
class Requirement:
    """A package, its module, and its use."""

    package: str
    module: str
    use: str


def requirements() -> list[Requirement]:
    """Return the packages, in the order of the file.

    Raises:
        ValueError: a line has another form.
    """
    found = []
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{FILE.name}: {line!r} is not of the form 'package  # module: use'")
        found.append(Requirement(**match.groupdict()))
    return found
