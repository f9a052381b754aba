"""Row of a report: a job, and the format of its numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainyard.sweep.goals import Goals, as_number, fronts

Value = bool | int | float | str

# Numbers in Hydra's grammar. An integer with more digits would not fit into 64 bits.
_INT = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[+-]?(((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|inf|nan)", re.IGNORECASE)


@dataclass(frozen=True)
class JobRow:
    """Job of a sweep.

    Attributes:
        num: its number.
        overrides: the overrides that vary, as written: `{"optim.lr": "0.001", "model": "mlp"}`.
        state: its state, such as `done`, `pruned`, `failed` or `running` (`trainyard.sweep.events.JobState`).
        objective: the number that ranks it; None if there is no objective. With several objectives, the first
            objective.
        seconds: its time; for a job of a stack, its share of the stack's time; None if unknown.
        directory: its directory, which may be missing.
        error: the reason why it did not finish, on one line.
        metrics: the returned values by name, if jobs return more than a single objective.
        losses: several objectives as numbers that are minimized; empty for a single objective.
        violation: the total constraint violation; 0 if it is feasible.
        history: how it was trained before it had these overrides (`trainyard.sweep.report.repeats.history`); empty if
            it has had them from the start.
    """

    num: int
    overrides: dict[str, str]
    state: str
    objective: float | None
    seconds: float | None
    directory: Path
    error: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    violation: float = 0.0
    history: str = ""

    def graded(self, value: Any, goals: Goals | None) -> JobRow:
        """Return the row with the result of its job.

        Args:
            value: the returned value, or the last reported value.
            goals: the metrics by which jobs are compared, if jobs return more than a single objective.
        """
        if goals is None:
            return replace(self, objective=as_number(value))
        found = goals.measured(value)
        first = found.get(goals.names[0])
        if self.state != "done":
            return replace(self, objective=first, metrics=found)
        losses = goals.losses(found) if goals.several else ()
        return replace(self, objective=first, metrics=found, losses=losses, violation=goals.violation(found))

    def value(self, name: str) -> float | None:
        """Return the value of a column of `measures`."""
        return self.metrics.get(name) if self.metrics else self.objective

    @property
    def ranked(self) -> bool:
        """Whether the job finished with an objective and is feasible; other jobs have no rank.

        With several objectives, the job must have all of them.
        """
        given = self.objective is not None and not math.isnan(self.objective) and math.inf not in self.losses
        return self.state == "done" and given and not self.violation

    @property
    def outcome(self) -> str:
        """The state as shown to users, including `infeasible`."""
        return f"{self.state}, infeasible" if self.violation else self.state

    @property
    def label(self) -> str:
        """Label such as `#3 optim.lr=0.001 model=mlp`."""
        return " ".join([f"#{self.num}", *(f"{key}={value}" for key, value in self.overrides.items())])


def measures(rows: Sequence[JobRow], objective: str | None) -> list[str]:
    """Return the names of the numbers of rows: the objective, or all metrics by which they are compared."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics)) or [objective or "objective"]


def front_of(rows: Sequence[JobRow]) -> dict[int, int]:
    """Return the number of the Pareto front of each ranked job, from 1; empty with a single objective."""
    points = [row for row in rows if row.ranked and row.losses]
    found = fronts([row.losses for row in points]) if points else []
    return {row.num: front for row, front in zip(points, found, strict=True)}


def keys(rows: Sequence[JobRow]) -> list[str]:
    """Return the keys of all overrides, in the order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row.overrides))


def varying(rows: Sequence[JobRow]) -> list[str]:
    """Return the keys whose values differ between the rows; a missing key differs from a present one."""
    return [key for key in keys(rows) if len({row.overrides.get(key) for row in rows}) > 1]


def parse(texts: Sequence[str | None]) -> list[Value | None]:
    """Parse a column of overrides as ints, floats or bools if all values except None are of this type; otherwise as
    text."""
    given = [text for text in texts if text is not None]
    convert: type[int] | type[float] | type[str] = str
    if given and all(text.lower() in ("true", "false") for text in given):
        return [None if text is None else text.lower() == "true" for text in texts]
    if given and all(_INT.fullmatch(text) for text in given):
        convert = int
    elif given and all(_FLOAT.fullmatch(text) for text in given):
        convert = float
    return [None if text is None else convert(text) for text in texts]


def in_order(texts: Iterable[str | None]) -> list[str]:
    """Return the distinct values of a parameter in their order: numbers and lists of numbers by value, then all others.

    Example:
        >>> in_order(["[128]", "[16]", "1e-2", "[16,8]", "0.003"])
        ['0.003', '1e-2', '[16]', '[16,8]', '[128]']
    """
    return sorted({text for text in texts if text is not None}, key=_order)


def _order(text: str) -> tuple[int, list[float], str]:
    """Return the sort key of a value: numbers, then lists of numbers, then texts in alphabetical order."""
    inner = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    parts = [part.strip() for part in inner.split(",")]
    if inner and all(_FLOAT.fullmatch(part) for part in parts):
        return 0 if inner is text else 1, [float(part) for part in parts], text
    return 2, [], text


def number(value: float | None, digits: int = 4) -> str:
    """Format a number: `0.9733`, `1e-4`, `120000`; `-` for None."""
    if value is None:
        return "-"
    if value == round(value, 0) and abs(value) < 1e6:
        return str(int(value))
    return re.sub(r"e([+-])0*", lambda found: f"e{found[1].strip('+')}", f"{value:.{digits}g}")


def shortened(value: str) -> str:
    """Return the value of an override for a table: a number with more than six significant digits is rounded to six."""
    if _FLOAT.fullmatch(value) is None or _INT.fullmatch(value) or not math.isfinite(float(value)):
        return value
    rounded = number(float(value), 6)
    return rounded if len(rounded) < len(value) else value


def with_spread(mean: float | None, spread: float | None) -> tuple[str, str]:
    """Format a mean and its spread, both with the decimals of two digits of the spread: `0.9889`, `0.0056`.

    Without a spread, the second is empty.
    """
    if mean is None or spread is None or not (0 < spread < math.inf) or not math.isfinite(mean):
        return number(mean), "" if spread is None or mean is None else number(spread, 2)
    decimals = 1 - math.floor(math.log10(float(f"{spread:.1e}")))
    if decimals > 7 or abs(mean) >= 1e7:
        return number(mean, 6), number(spread, 2)
    return f"{mean:.{max(0, decimals)}f}", f"{spread:.{max(0, decimals)}f}"


def p_value(value: float | None) -> str:
    """Format a p-value: `0.031`, `< 0.001`; `-` for None."""
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


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
