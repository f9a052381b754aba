"""Comparison of two files of figures: it reports what has become slower.

    python scripts/bench/compare.py OLD.json NEW.json [--over 5]

Both are files of `run.py --json`. Compared are ratios of sides that took turns in one session, never times, so the
files may come from different days; the machine should be the same. A ratio is a regression when its median has risen
by more than 5 % and the rise is not noise: of all pairs of an old and a new round, the new one is above the old in
nine of ten. A side that ran in the old file and fails in the new is one too. The exit status is 1 after a regression.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Table

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

    def regressed(self, over: float) -> bool:
        """Return whether the ratio rose by more than `over` (0.05 is 5 %), or can no longer be measured."""
        return not self.new or (self.factor > 1 + over and self.certainty >= CERTAIN)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--over", type=float, default=5.0, help="percent that a ratio may rise")
    options = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (options.old, options.new))
    if old["machine"] != new["machine"]:
        print(f"The machines differ: {old['machine']} and {new['machine']}.")
    if old["quick"] or new["quick"]:
        print("Figures of --quick are trials: they prove nothing.")
    broken = [
        name for name, case in new["cases"].items() if case["error"] and not old["cases"].get(name, case)["error"]
    ]
    found = list(changes(old, new))
    regressions = [change for change in found if change.regressed(options.over / 100)]
    for name in broken:
        print(f"REGRESSION  {name}: the case failed: {new['cases'][name]['error']}")
    for change in regressions:
        told = "it failed"
        if change.new:
            before, after = statistics.median(change.old), statistics.median(change.new)
            spread = (
                f"({min(change.new):.3f} to {max(change.new):.3f}; was {min(change.old):.3f} to {max(change.old):.3f})"
            )
            told = f"{before:.3f} -> {after:.3f}, {change.factor - 1:+.1%}  {spread}"
        print(f"REGRESSION  {change.table}: {change.label}: {told}")
    print(f"{len(found)} ratios compared, {len(regressions) + len(broken)} regressions over {options.over:g} %.")
    sys.exit(bool(regressions or broken))


if __name__ == "__main__":
    main()
