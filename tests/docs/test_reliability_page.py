"""docs/reliability.md has a row for each part of `scripts/torture.py`."""

import ast
from pathlib import Path

from markdown_tables import ROOT, codes, page, section, tables


def _parts() -> set[str]:
    """The names of the parts: the first argument of each `Part(…)` in scripts/torture/."""
    calls = [
        node
        for file in Path(ROOT / "scripts/torture").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Part"
    ]
    return {str(call.args[0].value) for call in calls if isinstance(call.args[0], ast.Constant)}


def test_every_part_has_a_row_in_both_tables() -> None:
    text = page("reliability.md")
    (_, how), (_, results) = tables(section(text, "Tests")) + tables(section(text, "Results"))
    assert {codes(row["part"])[0] for row in how} == _parts()
    assert {row["part"] for row in results} == _parts()
