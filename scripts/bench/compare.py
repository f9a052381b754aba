"""Comparison of two revisions, or of two files of figures: reports the figures that have become worse.

    python scripts/bench/compare.py OLD NEW [--only step,models] [--rounds 5] [--here] [--over 5]
    python scripts/bench/compare.py OLD.json NEW.json [--over 5]

For two revisions of git (`main~20 main`), the selected cases of both revisions run alternately in one session on this
machine, in `.venv-bench` or, with `--here`, in this interpreter (see revisions.py). The figures of Trainyard's own
sides are compared round by round. Uncommitted changes are not part of a revision.

For two files of `run.py --json`, only ratios of sides that ran alternately in one session are compared, not times. The
files may therefore be from different days. They should be from the same machine.

A figure or ratio is a regression if its median has increased by more than 5 % (`--over`) and the increase is not noise:
in at least nine of ten pairs of an old and a new round, the new value is higher. A side that has old figures and fails
in the new revision or file is also a regression. The exit status is 1 after a regression, and 2 if the comparison is
not possible.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment
import revisions
from measure import Table, own_sides
from report import number

CERTAIN = 0.9


@dataclass(frozen=True)
class Change:
    """Change of one ratio.

    Attributes:
        table, label: its table, and its label there.
        old, new: its rounds; `new` is empty if a side failed.
    """

    table: str
    label: str
    old: list[float]
    new: list[float]

    @property
    def factor(self) -> float:
        """New median as a multiple of the old one."""
        return statistics.median(self.new) / statistics.median(self.old)

    @property
    def certainty(self) -> float:
        """Share of the pairs of rounds in which the new one is above the old one."""
        return statistics.mean(new > old for old, new in itertools.product(self.old, self.new))

    @property
    def told(self) -> str:
        """The change in words."""
        if not self.new:
            return "it failed"
        before, after = statistics.median(self.old), statistics.median(self.new)
        spread = f"({min(self.new):.3f} to {max(self.new):.3f}; was {min(self.old):.3f} to {max(self.old):.3f})"
        return f"{before:.3f} -> {after:.3f}, {self.factor - 1:+.1%}  {spread}"

    def regressed(self, over: float) -> bool:
        """Return whether the ratio rose by more than `over` (0.05 is 5 %), or can no longer be measured."""
        return not self.new or (self.factor > 1 + over and self.certainty >= CERTAIN)


@dataclass(frozen=True)
class Rounds(Change):
    """Change of a figure that was measured in the same rounds, old and new side by side."""

    @property
    def factors(self) -> list[float]:
        """New figure as a multiple of the old one, round by round."""
        return [new / old for old, new in zip(self.old, self.new, strict=False)]

    @property
    def factor(self) -> float:
        return statistics.median(self.factors)

    @property
    def told(self) -> str:
        if not self.new:
            return "it failed"
        before, after = statistics.median(self.old), statistics.median(self.new)
        spread = f"({min(self.factors) - 1:+.1%} to {max(self.factors) - 1:+.1%})"
        return f"{number(before)} -> {number(after)}, {self.factor - 1:+.1%}  {spread}"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Yield every ratio that was measured in `old` and that `new` has tried."""
    tried = _tables(new)
    for key, table in _tables(old).items():
        if key not in tried:
            continue
        again = tried[key]
        for comparison in table.comparisons:
            before = comparison.per_round(table.values)
            after = comparison.per_round(again.values)
            failed = {comparison.of, comparison.to} & set(again.failed)
            if comparison.kind == "ratio" and before and (after or failed):
                yield Change(table.title, comparison.label, before, after)


def _tables(figures: Mapping[str, Any]) -> dict[tuple[str, str], Table]:
    """Return the tables by the name of the case and their own title."""
    return {
        (name, table["title"]): Table.load(table) for name, case in figures["cases"].items() for table in case["tables"]
    }


def figures_of_own_sides(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Yield each figure of Trainyard's sides that was measured in `old` and that `new` has tried."""
    tried = _tables(new)
    for key, table in _tables(old).items():
        if key not in tried:
            continue
        again = tried[key]
        for side in own_sides(table.values):
            before, after = table.values[side], again.values.get(side, [])
            if min(before, default=0.0) > 0 and (after or side in again.failed):
                yield Rounds(table.title, side, before, after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="old revision, or old file of figures")
    parser.add_argument("new", help="new revision, or new file of figures")
    parser.add_argument(
        "--over", type=float, default=5.0, help="accepted increase of a figure or ratio in percent (default: 5)"
    )
    parser.add_argument("--only", default="step,models", help="cases to run for revisions (default: step,models)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds for revisions (default: 5)")
    parser.add_argument("--here", action="store_true", help="use this interpreter, not .venv-bench")
    parser.add_argument("--threads", type=int, default=1, help="threads for CPU kernels (default: 1)")
    parser.add_argument("--quick", action="store_true", help="use the smallest sizes, to test the comparison")
    options = parser.parse_args()
    try:
        if Path(options.old).is_file() or Path(options.new).is_file():
            status = compare_files(Path(options.old), Path(options.new), options.over)
        else:
            status = compare_revisions(options)
    except revisions.RevisionError as error:
        print(error, file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def compare_revisions(options: argparse.Namespace) -> int:
    """Measure both revisions, print each figure and the regressions, and return the exit status."""
    with revisions.checked_out([options.old, options.new]) as (old, new):
        cases = revisions.common_cases([name for name in options.only.split(",") if name], old, new)
        python = Path(sys.executable) if options.here else environment.make()
        arguments = ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
        before, after = revisions.measured((old, new), cases, options.rounds, python, arguments)
    if options.quick:
        print("Figures of --quick are not measurements.")
    for name, case in before["cases"].items():
        if case["error"]:
            print(f"{name} is not compared completely, because it failed in {options.old}: {case['error']}")
    found = list(figures_of_own_sides(before, after))
    table = ""
    for change in found:
        if change.table != table:
            table = change.table
            print(table)
        print(f"  {change.label}: {change.told}")
    return conclude(found, _broken(before, after), options.over, "figures")


def compare_files(old_file: Path, new_file: Path, over: float) -> int:
    """Print the regressions from one file of figures to another, and return the exit status."""
    for file in (old_file, new_file):
        if not file.is_file():
            raise revisions.RevisionError(f"{file}: there is no such file")
    old, new = (json.loads(path.read_text()) for path in (old_file, new_file))
    if old["machine"] != new["machine"]:
        print(f"The machines differ: {old['machine']} and {new['machine']}.")
    if old["quick"] or new["quick"]:
        print("Figures of --quick are not measurements.")
    return conclude(list(changes(old, new)), _broken(old, new), over, "ratios")


def conclude(found: Sequence[Change], broken: Mapping[str, str], over: float, what: str) -> int:
    """Print the regressions, and return the exit status."""
    regressions = [change for change in found if change.regressed(over / 100)]
    for name, error in broken.items():
        print(f"REGRESSION  {name}: the case failed: {error}")
    for change in regressions:
        print(f"REGRESSION  {change.table}: {change.label}: {change.told}")
    print(f"{len(found)} {what} compared, {len(regressions) + len(broken)} regressions over {over:g} %.")
    return int(bool(regressions or broken))


def _broken(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return the errors of the cases that fail only in `new`."""
    cases = new["cases"].items()
    return {name: case["error"] for name, case in cases if case["error"] and not old["cases"].get(name, case)["error"]}


if __name__ == "__main__":
    main()
