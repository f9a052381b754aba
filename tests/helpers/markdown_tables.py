"""Markdown pages as data: their tables, sections, links and code."""

import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
Row = dict[str, str]

_CELLS = re.compile(r"(?<!\\)\|(?=(?:[^`]*`[^`]*`)*[^`]*$)")  # a bar outside of code


def page(name: str) -> str:
    """The text of a page of docs/, or, with a slash or from the top, of the repository."""
    return (ROOT / ("" if name in ("README.md", "CONTRIBUTING.md") else "docs") / name).read_text(encoding="utf-8")


def without_blocks(text: str) -> str:
    """The text with blanks in place of its blocks of code: every other character is where it was."""
    blocks = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
    return blocks.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)


def section(text: str, heading: str) -> str:
    """What stands below a heading, to the next heading of its level or above."""
    prose = without_blocks(text)
    match = re.search(rf"^(#+) {re.escape(heading)}$", prose, re.MULTILINE)
    assert match, f"no section {heading!r}"
    end = re.compile(rf"^#{{1,{len(match.group(1))}}} ", re.MULTILINE).search(prose, match.end())
    return text[match.end() : end.start() if end else None]


def tables(text: str) -> list[tuple[list[str], list[Row]]]:
    """Every table: its header's cells, and its rows by the header's cells (or, where one is empty, its number)."""
    found: list[tuple[list[str], list[Row]]] = []
    block: list[str] = []
    for line in [*without_blocks(text).splitlines(), ""]:
        if line.lstrip().startswith("|"):
            block.append(line)
        elif block:
            header, _, *rows = [cells(each) for each in block]
            names = [cell or str(number) for number, cell in enumerate(header)]
            found.append((header, [dict(zip(names, row, strict=True)) for row in rows]))
            block = []
    return found


def table(text: str, first: str) -> list[Row]:
    """The rows of the only table whose header begins with a cell."""
    found = [rows for header, rows in tables(text) if header[0] == first]
    assert len(found) == 1, f"{len(found)} tables begin with the column {first!r}"
    return found[0]


def cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in _CELLS.split(line.strip().strip("|"))]


def codes(text: str) -> list[str]:
    """The spans of code in a text."""
    return re.findall(r"`([^`]+)`", text)


def names(rows: list[Row], column: str) -> list[str]:
    """The code of a column: a cell may name several."""
    return [code for row in rows for code in codes(row[column])]


def value(text: str) -> Any:
    """What a value in a table stands for, as YAML or as Python writes it; empty collections are None."""
    text = "null" if text == "None" else text
    return plain(OmegaConf.create(f"value: {text}").value if "${" not in text else text)


def plain(given: Any) -> Any:
    """A default as a table shows it: a tuple or a config's list is a list, and an empty collection is None."""
    if OmegaConf.is_config(given):
        given = OmegaConf.to_container(given)
    given = list(given) if isinstance(given, tuple) else given
    return None if given in ([], {}) else given


def defaults(rows: list[Row], column: str, key: str = "key") -> dict[str, str]:
    """The default of each key. A row of several keys has as many defaults, or one for all of them."""
    found: dict[str, str] = {}
    for row in rows:
        keys = codes(row[key])
        shown = row[column].split(" (")[0].split(":")[0]
        given = codes(shown) or [part.strip() for part in shown.split(",")]
        assert len(given) in (1, len(keys)), f"{row}: {len(keys)} keys, {len(given)} defaults"
        found |= dict(zip(keys, given * len(keys) if len(given) == 1 else given, strict=True))
    return found
