"""Table of docs/reliability.md: what was tried, and how often it failed."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from trials import Part, Result

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
HEADER = ("part", "cases", "failures", "compared", "command")


@dataclass(frozen=True)
class Row:
    """Row of the table.

    Attributes:
        part: the name of the part.
        cases: the number of cases.
        failures: how many of them did not hold.
        compared: what was compared.
        tried: the command, the date, the commit, the versions and the cores.
        faults: the faults, by the number of the case.
    """

    part: str
    cases: int
    failures: int
    compared: str
    tried: str
    faults: dict[int, str]

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.part, str(self.cases), str(self.failures), self.compared, self.tried)


def row(part: Part, seed: int, results: Sequence[Result]) -> Row:
    """Return the row of a part that was tried just now."""
    faults = {result.case: result.fault for result in results if result.fault is not None}
    one = len(results) == 1 and results[0].case > 0
    what = f"--case {results[0].case}" if one else f"--cases {len(results)}"
    command = f"`python scripts/torture.py {part.name} --seed {seed} {what}`"
    versions = [f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in _PACKAGES)]
    where = f"{len(os.sched_getaffinity(0))} cores of {_processor()}"
    tried = [command, f"{datetime.now(UTC):%Y-%m-%d}", f"commit {_commit()}", *versions, where]
    return Row(part.name, len(results), len(faults), part.compared, ", ".join(tried), faults)


_PACKAGES = ("torch", "hydra-core")


def as_text(rows: Sequence[Row]) -> str:
    """Return rows as text for a terminal."""
    lines = [f"{'part':<10}{'cases':>7}{'failures':>10}  compared"]
    lines += [f"{row.part:<10}{row.cases:>7}{row.failures:>10}  {row.compared}" for row in rows]
    return "\n".join(lines)


def write(rows: Sequence[Row], page: Path = PAGE) -> None:
    """Put rows into the table of the page, in the place of the rows of the same parts."""
    lines = page.read_text().splitlines()
    first = lines.index(f"| {' | '.join(HEADER)} |") + 2  # below the line of dashes
    last = next((index for index, line in enumerate(lines[first:], first) if not line.startswith("|")), len(lines))
    table = {line.split("|")[1].strip(): line for line in lines[first:last]}
    table |= {row.part: f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row.cells)} |" for row in rows}
    page.write_text("\n".join([*lines[:first], *table.values(), *lines[last:]]) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
