"""The commands on the pages can be pasted into a shell: values with parentheses are quoted."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md")})
BLOCK = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
LANGUAGES = ("", "bash", "console")
COMMAND = re.compile(
    r"^ *(?:\$ )?((?:[A-Z_]+=\S+ )*(?:python|trainyard|torchrun|srun|mpirun) (?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE
)


def commands(text: str) -> Iterator[str]:
    for block in BLOCK.finditer(text):
        if block[1] in LANGUAGES:
            for command in COMMAND.finditer(block[2]):
                yield command[1]


def syntax_errors(script: str) -> str:
    return subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False).stderr


def test_a_shell_accepts_each_command_of_the_pages() -> None:
    pages = {page: list(commands(page.read_text(encoding="utf-8"))) for page in PAGES}
    wrong = [
        f"{page.relative_to(ROOT)}: {command}"
        for page, found in pages.items()
        if syntax_errors("\n".join(found))
        for command in found
        if syntax_errors(command)
    ]
    assert not wrong, "bash does not accept these commands:\n" + "\n".join(wrong)
    assert sum(map(len, pages.values())) > 100, "the pages have more commands than are found"


def test_an_unquoted_range_is_found() -> None:
    page = "```yaml\na: 1\n```\n\n```\npython train.py -m \\\n    seed=range(8)\n```\n"
    (command,) = commands(page)
    assert "syntax error" in syntax_errors(command)
