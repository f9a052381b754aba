"""Row of a report: a finished job, and the format of its numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Direction = Literal["maximize", "minimize"]
Value = bool | int | float | str

# Numbers in Hydra's grammar. An integer with more digits would not fit into 64 bits.
_INT = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[+-]?(((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|inf|nan)", re.IGNORECASE)


@dataclass(frozen=True)
class JobRow:
    """Job of a sweep that has ended.

    Attributes:
        num: its number.
        overrides: the overrides that vary, as written: `{"optim.lr": "0.001", "model": "mlp"}`.
        state: how it ended: `done`, `failed`, `interrupted`, `timeout` or `lost` (see `TaskOutcome`).
        objective: the number that ranks it; None if it has none.
        seconds: the time that it took; of a stack's, its share; None if unknown.
        directory: its directory, which may be missing.
        error: why it did not finish, on one line.
    """

    num: int
    overrides: dict[str, str]
    state: str
    objective: float | None
    seconds: float | None
    directory: Path
    error: str | None = None

    @property
    def ranked(self) -> bool:
        """Whether the job finished with an objective; other jobs have no place in the ranking."""
        return self.state == "done" and self.objective is not None and not math.isnan(self.objective)

    @property
    def label(self) -> str:
        """Label such as `#3 optim.lr=0.001 model=mlp`."""
        return " ".join([f"#{self.num}", *(f"{key}={value}" for key, value in self.overrides.items())])


def keys(rows: Sequence[JobRow]) -> list[str]:
    """Return the keys of all overrides, in the order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row.overrides))


def varying(rows: Sequence[JobRow]) -> list[str]:
    """Return the keys whose values differ between the rows; a missing key differs from a present one."""
    return [key for key in keys(rows) if len({row.overrides.get(key) for row in rows}) > 1]


def parse(texts: Sequence[str | None]) -> list[Value | None]:
    """Parse a column of overrides as ints, floats or bools if all of them (but None) are such; else as text."""
    given = [text for text in texts if text is not None]
    convert: type[int] | type[float] | type[str] = str
    if given and all(text.lower() in ("true", "false") for text in given):
        return [None if text is None else text.lower() == "true" for text in texts]
    if given and all(_INT.fullmatch(text) for text in given):
        convert = int
    elif given and all(_FLOAT.fullmatch(text) for text in given):
        convert = float
    return [None if text is None else convert(text) for text in texts]


def number(value: float | None, digits: int = 4) -> str:
    """Format a number: `0.9733`, `1e-4`, `120000`; `-` for None."""
    if value is None:
        return "-"
    if value == round(value, 0) and abs(value) < 1e6:
        return str(int(value))
    return re.sub(r"e([+-])0*", lambda found: f"e{found[1].strip('+')}", f"{value:.{digits}g}")


def duration(seconds: float | None) -> str:
    """Format a duration: `4.2 s`, `3 min 05 s`, `2 h 07 min`; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
