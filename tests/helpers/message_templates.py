"""The texts that the source code can write, as templates, and whether a message consists of them.

A template is a string constant or an f-string of the source. What is known only when the program runs is a wildcard: a
placeholder of an f-string, `%s` of logging, a field of `str.format`, or an operand of `+` that is not a string. A
message may consist of several templates, side by side or one in a wildcard of another: `lr: 0 is invalid. Expected a
number above 0.` is a template of ConfigError with another one, "a number above 0", in its last wildcard.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

WILD = "\0"
LEFT_OUT = "…"  # as a word of its own, in a quoted message
_FIELD = re.compile(r"%[-+#0]*\d*(?:\.\d+)?[sdgrfe](?![a-z])|\{[\w.\[\]]*(?:![rs])?(?::[^{}\s]*)?\}")
_SENTENCE_END = re.compile(r"(?<=[.?!;])\s+")
_ENDS = " .,:;()"
_KEY = re.compile(r"[\w.]+(?=: )")
_QUOTED = re.compile(r"(?<![\w=])'[^']*'(?!\w)|\"[^\"]*\"")
_PLAIN = re.compile(r"[(\[]?([A-Za-z][a-z]*(?:['-][a-z]+)*)([.,:;?!)\]]*)")
_FEWEST_WORDS = 2  # a template of one word is found in any text
_LONGEST_VALUE = 400  # characters

Place = tuple[int, int]


@dataclass(frozen=True)
class Word:
    """A word of plain language in a text.

    Attributes:
        start: its place.
        end: the end of it.
        follows: whether it follows another word without a sign between.
    """

    start: int
    end: int
    follows: bool


def plain_words(text: str) -> list[Word]:
    """Return the words of plain language in a text.

    What is in quotation marks, and a token with a digit, an underscore or another sign is a value, not a word. So is
    the key with which an error begins.
    """
    key = _KEY.match(text)
    text = _QUOTED.sub(lambda quoted: "'" * len(quoted[0]), text)
    words: list[Word] = []
    follows = False
    for token in re.finditer(r"\S+", text):
        word = _PLAIN.fullmatch(token[0])
        if word and not (key and key[0].islower() and token.start() == 0):
            words.append(Word(token.start() + word.start(1), token.start() + word.end(1), follows))
        follows = word is not None and not word[2]
    return words


class Template:
    """A text of the source, or a sentence of it, with `WILD` in place of each value."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces = [piece for piece in text.split(WILD) if piece]
        self.words = [[piece[word.start : word.end] for word in plain_words(piece)] for piece in self.pieces]
        self.count = sum(map(len, self.words))

    def found(self, message: str) -> Iterator[list[Place]]:
        """Yield the places of the pieces wherever all of them stand in order.

        Before a `…` in the message, a template may be cut within a value.
        """
        first = self.pieces[0]
        begin = message.find(first)
        while begin >= 0:
            places = [(begin, begin + len(first))]
            for piece in self.pieces[1:]:
                at = message.find(piece, places[-1][1], places[-1][1] + _LONGEST_VALUE)
                if at < 0:
                    break
                places.append((at, at + len(piece)))
            complete = len(places) == len(self.pieces)
            if (complete or self._is_cut(message, places)) and _of_words(message, begin, places[-1][1]):
                yield places
            begin = message.find(first, begin + len(first))

    def _is_cut(self, message: str, places: list[Place]) -> bool:
        """Whether only a value stands between the found pieces and the next `…`."""
        if sum(map(len, self.words[: len(places)])) < _FEWEST_WORDS:
            return False
        rest, cut, _ = message[places[-1][1] :].partition(f" {LEFT_OUT}")
        return bool(cut) and not plain_words(rest)


def _of_words(text: str, start: int, end: int) -> bool:
    """Whether a part of a text neither begins nor ends within a word."""
    return not any(re.fullmatch(r"\w\w", text[max(at - 1, 0) : at + 1]) for at in (start, end))


class Templates:
    """All templates of the source.

    Args:
        texts: the texts of the source.
        values: single words that can stand in a wildcard. Texts of one word in the source can do so, too.
    """

    def __init__(self, texts: Iterable[str], values: Iterable[str] = ()) -> None:
        lines = {" ".join(line.split()).strip(_ENDS) for text in texts for line in text.splitlines()}
        sentences = {part.strip(_ENDS) for line in lines for part in (line, *_SENTENCE_END.split(line))}
        made = [Template(text) for text in sorted(sentences) if text.strip(WILD)]
        self.all = [template for template in made if template.count >= _FEWEST_WORDS]
        self.beginnings = {part for template in self.all for part in _beginnings(template)}
        single = {words[0] for template in made if template.count == 1 for words in template.words if words}
        self.values = single | set(values)

    def unknown(self, message: str) -> list[str]:
        """Return the words of a message that no template has: an empty list if the source can write it.

        The first letter of the message may be a capital that the program makes, and a value may have the s of a plural.
        """
        message = " ".join(message.split())
        unknown = self._unknown(message)
        return unknown and self._unknown(message[0].lower() + message[1:]) and unknown

    def _unknown(self, message: str) -> list[str]:
        literal: set[int] = set()
        for template in self.all:
            for places in template.found(message):
                literal.update(*(range(start, end) for start, end in places))
        for cut in re.finditer(rf" {LEFT_OUT}(?!\S)", message):
            for word in re.finditer(r"\S+", message[: cut.start()]):
                part = message[word.start() : cut.start()]
                if part in self.beginnings or self._is_part(part):
                    literal.update(range(word.start(), cut.start()))
        words = [message[word.start : word.end] for word in plain_words(message) if word.start not in literal]
        return [word for word in words if not any(word.removesuffix(s) in self.values for s in ("", "s", "es"))]

    def _is_part(self, text: str) -> bool:
        """Whether at least four words stand like this within a template."""
        return text.count(" ") >= 3 and any(text in template.text for template in self.all)


def _beginnings(template: Template) -> Iterator[str]:
    """Yield the beginnings of a template that are cut within its first piece: two words or more."""
    words = template.text.split(WILD)[0].split()
    for count in range(_FEWEST_WORDS, len(words)):
        yield " ".join(words[:count])


def texts(code: str) -> Iterator[str]:
    """Yield the texts of a module's code, with `WILD` in place of values; docstrings are left out."""
    tree = ast.parse(code)
    left_out = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp) and id(node) not in left_out:
            yield _text(node)


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, bytes):
        return node.value.decode(errors="replace")
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _FIELD.sub(WILD, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else WILD for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return _text(node.left)
    return WILD
