"""A part of the check, in the process of the part."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from results import Results

from catalog import PARTS

T = TypeVar("T")

NEEDS_CUDA = "needs CUDA"


@dataclass
class Part:
    """A running part.

    Attributes:
        name: the name in `catalog.PARTS`.
        results: the file of the results.
        device: `cuda`, `cuda:1` or `cpu`.
        quick: whether to use the smallest sizes.
        folder: an empty folder for temporary files.
        until: the time of `time.monotonic` at which the part is ended.
        failures: the failures so far; a part with failures fails at its end.
    """

    name: str
    results: Results
    device: str
    quick: bool
    folder: Path
    until: float
    failures: list[str] = field(default_factory=list)

    @property
    def cuda(self) -> bool:
        return self.device != "cpu"

    @property
    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.until - time.monotonic()

    def size(self, full: T, quick: T) -> T:
        """Return the full size or the quick size, as requested."""
        return quick if self.quick else full

    def put(self, table: str, row: str, **values: Any) -> None:
        """Write a row of a table to the results.

        Args:
            table: the key of the table.
            row: the name of the row.
            **values: `found`: a number or a text; `missing`: the reason why there is none; `failed`: an error; for
                times, the values of `timing.take_turns`.
        """
        self.results.row(self.name, table, row, values)

    def fail(self, reason: str) -> None:
        """Record a failure; the part continues."""
        print(f"FAILED: {reason}", flush=True)
        self.failures.append(reason)


def run(main: Callable[[Part], None]) -> NoReturn:
    """Run the part that the command line names, and end the process; its last line contains the failures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=[part.name for part in PARTS])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--until", type=float, default=float("inf"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    results = Results(options.json)
    part = Part(options.name, results, options.device, options.quick, options.folder, options.until)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # what it has started is ended in its turn
    main(part)
    sys.exit("; ".join(part.failures) or 0)


def in_one_line(error: BaseException) -> str:
    """Return an error's class and message, shortened."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
