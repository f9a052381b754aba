"""Fills the tables of docs/gpu.md with the results of the check.

    python scripts/gpu/tables.py FILE.json [--page FILE]

The script writes the part of the page between the two markers, and copies the results to docs/gpu.json, from which a
test creates the page again. With `--page`, the script fills another page and does not copy the results. Parts that
were not run are shown as "not yet run".
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from catalog import PARTS, TOTAL, Part, Table

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- results of scripts/gpu_check.sh -->", "<!-- end of the results -->"
NOT_RUN = "not yet run"


def fill(page: str, content: dict[str, Any]) -> str:
    """Return the page with these results between its markers.

    Raises:
        ValueError: the page does not have both markers once.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end or BEGIN in rest or END in after:
        raise ValueError(f"the page does not have {BEGIN!r} and then {END!r} once")
    return f"{before}{begin}\n\n{chr(10).join(results(content))}\n{end}{after}"


def results(content: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of all results."""
    parts = content.get("parts", {})
    yield from machine(content)
    yield from table(["part", "what it does", "limit (s)", "state", "seconds"], [
        [f"`{part.name}`", part.about, str(part.limit), state(parts.get(part.name)), seconds(parts.get(part.name))]
        for part in PARTS
    ])  # fmt: skip
    for part in PARTS:
        for each in part.tables:
            yield from [each.title, ""]
            yield from of(part, each, parts.get(part.name))


def machine(content: dict[str, Any]) -> Iterator[str]:
    """Yield the line about the machine of the results."""
    if "machine" not in content:
        yield from [f"The check has not been run on a GPU yet. The complete check takes {TOTAL} s at most.", ""]
        return
    facts = ", ".join(f"{name} {value}" for name, value in content["machine"].items() if value is not None)
    quick = (
        " The smallest sizes were used, so the figures are not meaningful." if content.get("sizes") == "quick" else ""
    )
    yield from [f"Measured on: {facts}.{quick}", ""]


def of(part: Part, each: Table, found: dict[str, Any] | None) -> Iterator[str]:
    """Yield a table of a part."""
    rows = (found or {}).get("tables", {}).get(each.key, {})
    without = NOT_RUN if found is None else f"no result ({state(found)})"
    if each.unit is None:
        yield from table(["", "result"], [[name, finding(rows.get(name), without)] for name in each.rows])
        return
    header = ["", each.unit, "lowest to highest (windows)", "loss", "clock (MHz)"]
    yield from table(header, [[name, *timing(rows.get(name), without)] for name in each.rows])


def finding(row: dict[str, Any] | None, without: str) -> str:
    """Return the cell of a finding."""
    if row is None:
        return without
    return f"failed: {row['failed']}" if "failed" in row else str(row.get("found", row.get("missing")))


def timing(row: dict[str, Any] | None, without: str) -> list[str]:
    """Return the cells of a side's times."""
    if row is None or "values" not in row:
        return [finding(row, without), "", "", ""]
    values, clocks = row["values"], [clock for clock in row["clocks"] if clock is not None]
    return [
        number(row["median"]) + (f" (then failed: {row['failed']})" if "failed" in row else ""),
        f"{number(min(values))} to {number(max(values))} ({len(values)})",
        f"{row['loss']:.4g}{'' if row['same'] else ' (differs)'}",
        f"{statistics.median(clocks):.0f}" if clocks else "",
    ]


def number(value: float) -> str:
    """Return a time with at least three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def state(found: dict[str, Any] | None) -> str:
    """Return the state of a part, with its error."""
    if found is None:
        return NOT_RUN
    return f"{found['state']}: {found['error']}" if found.get("error") else str(found["state"])


def seconds(found: dict[str, Any] | None) -> str:
    """Return the seconds that a part took."""
    return "" if found is None or found.get("seconds") is None else f"{found['seconds']:.0f}"


def table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown, and an empty one."""
    yield f"| {' | '.join(header)} |".replace("|  |", "| |")
    yield "|" + "---|" * len(header)
    for row in rows:
        cells = [re.sub(r"\s+", " ", cell).replace("|", "\\|").strip() for cell in row]
        yield f"| {' | '.join(cells)} |".replace("|  ", "| ")
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="results file of scripts/gpu_check.sh")
    parser.add_argument("--page", type=Path, help="another page to write the tables into")
    options = parser.parse_args()
    text = options.file.read_text(encoding="utf-8")
    page = options.page or DOCS / "gpu.md"
    page.write_text(fill(page.read_text(encoding="utf-8"), json.loads(text)), encoding="utf-8")
    if options.page is None:
        (DOCS / "gpu.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
