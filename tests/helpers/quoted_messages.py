"""The messages that a page quotes: inline code that reads as a message, and lines of output in its blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from markdown_tables import without_blocks
from message_templates import plain_words

_BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)(`+)(?!`)((?:(?!\n\s*\n).)+?)(?<!`)\1(?!`)", re.DOTALL)
_LANGUAGES = {"", "console"}  # others have the code of files
_PROGRAMS = "bash|cd|eval|export|grep|ls|mkdir|mlflow|mpirun|pip|python3?|source|srun|torchrun|trainyard|ray"
_COMMAND = re.compile(rf"(?:[A-Z][A-Z_]*=\S+ )*(?:{_PROGRAMS}) ")
_CODE = re.compile(r"^[\[({<\"']|\w\(| [-+*/=<>]=? |^(?:if|import|from|with) ")
_RULE = re.compile(r"[─-]{5}|\*{5}|^ *\|")
_GAP = re.compile(r"\S {3,}(?=\S)")
_WIDTH = 100
_GOES_ON = re.compile(r"(?:^|\s)[A-Za-z]+[,:]?$")


@dataclass(frozen=True)
class Quote:
    """A quoted message: its page and line, its text on one line, and the first line of its block, if it is in one."""

    page: str
    line: int
    text: str
    block: str = ""


def quotes(page: str, text: str) -> Iterator[Quote]:
    """Yield all messages that a page quotes."""
    yield from inline(page, text)
    yield from output(page, text)


def inline(page: str, text: str) -> Iterator[Quote]:
    """Yield the messages in the inline code of a page. Each may be cut at its end."""
    prose = without_blocks(text)
    for span in _SPAN.finditer(prose):
        code = " ".join(span[2].split())
        if is_message(code):
            yield Quote(page, prose.count("\n", 0, span.start()) + 1, f"{code} …")


def is_message(code: str) -> bool:
    """Whether inline code is a message: it has three plain words in succession, and is no command and no code."""
    if _COMMAND.match(code) or _CODE.search(code):
        return False
    run = longest = 0
    for word in plain_words(code):
        run = run + 1 if word.follows else 1
        longest = max(run, longest)
    return longest >= 3


def output(page: str, text: str) -> Iterator[Quote]:
    """Yield the messages in the output that the blocks of a page show."""
    for block in _BLOCK.finditer(text):
        if block[2].strip() not in _LANGUAGES:
            continue
        first = text.count("\n", 0, block.start(3)) + 1
        continued = False  # the command on the line above
        table = False
        message: list[str] = []
        lines = block[3].splitlines()
        for number, line in enumerate(lines):
            bare = line.strip()
            is_command = continued or bare.startswith("$ ") or bool(_COMMAND.match(bare))
            continued = is_command and bare.endswith("\\")
            ruled = any(_RULE.search(each) for each in lines[number : number + 2])
            table = bare not in ("", "…") and (table or ruled or len(_GAP.findall(bare)) > 1)
            if is_command or table or bare.startswith(("#", "{", "[")):
                continue
            message.append(bare)
            goes_on = len(line) >= _WIDTH and _GOES_ON.search(bare) and number + 1 < len(lines)
            if not goes_on:
                joined = _without_latex(" ".join(message))
                if len(joined.split()) >= 5 or len(plain_words(joined)) >= 3:
                    yield Quote(page, first + number - len(message) + 1, joined, lines[0].strip())
                message = []
        assert not message, f"{page}:{first}: the message at the end of this block is cut: {message}"


def _without_latex(text: str) -> str:
    return text.replace(r"$\pm$", "±").replace(r"\%", "%")
