"""Write the results of scripts/test_models.sh to the table of docs/works-with.md."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

COLUMNS = ("single", "stacked", "resume", "MLflow load", "serve")
BEGIN, END = "<!-- rows of scripts/test_models.sh -->", "<!-- end of the rows -->"


def table(results: str) -> str:
    """Return the table for lines of JSON, each with the keys case, column, said and version."""
    rows: dict[str, dict[str, str]] = {}
    for line in results.splitlines():
        seen = json.loads(line)
        row = rows.setdefault(seen["case"], {"version": seen["version"]})
        row[seen["column"]] = seen["said"]
    lines = [f"| library | version | model | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for case, row in rows.items():
        library, _, model = case.partition(" ")
        cells = [f"`{library}`", row["version"], model, *(row.get(column, "not run") for column in COLUMNS)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Replace the rows of the page."""
    import torch

    results, page = Path(sys.argv[1]), Path(sys.argv[2])
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    today = datetime.datetime.now(datetime.UTC).date()
    told = f"Last run: {today}, on the CPU, with torch {torch.__version__}."
    page.write_text(f"{before}{BEGIN}\n{told}\n\n{table(results.read_text())}\n{END}{after}")


if __name__ == "__main__":
    main()
