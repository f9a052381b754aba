"""The tutorial works as it is written: its files and commands, one page after another, print what it says."""

from pathlib import Path

import pytest
from page_commands import ROOT, Command, follow, missing, steps

PAGES = ("first-run", "own-model-and-data", "first-sweep", "search", "result-table")
WITHOUT_MLFLOW = ("tracker=none",)  # the lines about it are left out on the pages


def text_of(name: str) -> str:
    return (ROOT / f"docs/tutorial/{name}.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_tutorial_prints_what_it_says(tmp_path: Path) -> None:
    for name in PAGES:
        for command, status, said in follow(text_of(name), tmp_path, WITHOUT_MLFLOW):
            refused = any("is invalid. Expected" in line for line in command.output)
            assert status == (2 if refused else 0), f"{name}: {command.line}\n{said}"
            line = missing(command.output, said)
            assert line is None, f"{name}: {command.line}\nis to print: {line}\nbut printed:\n{said}"


def test_each_page_of_the_tutorial_is_among_those_and_has_commands() -> None:
    files = {file.stem for file in (ROOT / "docs/tutorial").glob("*.md")}
    assert files == {"index", *PAGES}
    assert all(any(isinstance(step, Command) for step in steps(text_of(name))) for name in PAGES)


def test_a_line_that_is_not_printed_is_found() -> None:
    assert missing(("a 1", "…", "c"), "a 2\nb\nc 3") == "c"
    assert missing(("a 1", "…", "c"), "a 2\nb\nc") is None
    assert missing(("b",), "a\nb") == "b"
