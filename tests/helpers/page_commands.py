"""The files and commands of a page, and what it says that the commands print.

A file is a block of code with a title: ```` ```python title="train.py" ````. A command is a line of a `console` block
that begins with `$ `. What follows it is its output, where `…` stands for any lines. Other blocks are left alone.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forked import Forked
from waiting import LIMIT

ROOT = Path(__file__).parents[2]
LEFT_OUT = "…"
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_EVERY_5_SECONDS = re.compile(r"epoch \d+/\d+  iter")  # a line of the Logger, of which a fast training has none
_ID = re.compile(r"\b[0-9a-f]{8}\b")
_NUMBER = re.compile(r"±?-?\d[\d.,:]*(e[+-]?\d+)?")


@dataclass(frozen=True)
class Written:
    """A file of the page."""

    path: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command of the page, and its output there."""

    line: str
    output: tuple[str, ...]


def steps(page: str) -> Iterator[Written | Command]:
    """Yield the files and commands of a page, in its order."""
    for language, rest, body in _BLOCK.findall(page):
        title = re.search(r'title="([^"]+)"', rest)
        if title:
            yield Written(title[1], body)
        elif language == "console":
            joined = re.sub(r"\\\n *", "", body)  # a command of several lines
            for part in re.split(r"^\$ ", joined, flags=re.MULTILINE)[1:]:
                line, *output = part.rstrip().split("\n")
                yield Command(line, tuple(output))


def follow(page: str, folder: Path, more: tuple[str, ...] = ()) -> Iterator[tuple[Command, int, str]]:
    """Do what a page says in a folder; yield each command with its exit status and what it printed.

    Args:
        page: its text.
        folder: where the files are written and the commands run.
        more: further overrides of each training.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    environment |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    for step in steps(page):
        if isinstance(step, Written):
            (folder / step.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / step.path).write_text(step.text, encoding="utf-8")
            continue
        program, *arguments = shlex.split(step.line)
        command = {"python": [], "trainyard": ["-m", "trainyard"]}[program] + arguments
        command += more if arguments[0] in ("train", "train.py") else ()
        process = Forked(
            [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said, _ = process.communicate(LIMIT)
        yield step, process.wait(), said


def missing(output: tuple[str, ...], said: str) -> str | None:
    """Return the first line of a page's output that a command did not print at its place, or None.

    Numbers may be others, and spaces and lines of a table: `0.95  ±0.012` is like `0.9  ±0.1`.

    >>> missing(("loss 0.5", "…", "done"), "loss 0.25\\nmore\\ndone")
    >>> missing(("loss 0.5", "done"), "loss 0.25\\nmore\\ndone")
    'done'
    """
    lines = [line for line in said.splitlines() if line.strip() and not _EVERY_5_SECONDS.match(line)]
    text = "".join(f"{stable(line)}\n" for line in lines)
    pattern = ""
    for line in output:
        if line.strip() == LEFT_OUT:
            pattern += r"(?:.*\n)*?"
        elif line.strip():
            pattern += re.escape(stable(line)) + r"\n"
        if not re.match(pattern, text):
            return line
    return None


def stable(line: str) -> str:
    """Return a line without what differs from machine to machine: numbers, ids, widths of columns, `(best)`."""
    line = _NUMBER.sub("#", _ID.sub("#", line)).replace("(best)", "")
    return " ".join(re.sub(r"[─▁▂▃▄▅▆▇█]+", "─", line).split())
