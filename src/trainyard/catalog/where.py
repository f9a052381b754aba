"""Condition on runs: `val/accuracy>0.9 and optim.lr<1e-2 and model=cnn`."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from trainyard.catalog.stored_run import StoredRun
from trainyard.errors import ConfigError

_TOKENS = re.compile(
    r"""(?P<text>'[^']*'|"[^"]*")"""
    r"""|(?P<number>(?<![\w/.])[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w/.]))"""
    r"""|(?P<word>[A-Za-z_][\w/.@:-]*)"""
    r"""|(?P<operator>==|!=|<=|>=|=|<|>|\(|\)|\[|\]|,)"""
    r"""|(?P<space>\s+)"""
)
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
}
_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}
_ACCEPTED = "comparisons such as val/accuracy>0.9, combined with and, or, not and parentheses"
_QUOTES = "Enclose the condition in quotes, because the shell interprets < and >."


class Where:
    """A condition on the properties, metrics and settings of a run (`StoredRun.value`).

    It has comparisons (`=`, `==`, `!=`, `<`, `<=`, `>`, `>=`, `in [a, b]`), `and`, `or`, `not` and parentheses. A word
    on the right side of a comparison is a string. A comparison is false if the run lacks the value, or if the types
    differ.

        >>> str(Where("optim.lr<1e-2 and model=cnn"))
        'optim.lr<1e-2 and model=cnn'

    Raises:
        ConfigError: the condition is invalid.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._words: list[str] = []
        try:
            self._condition = self._checked(ast.parse(self._as_python(), mode="eval").body)
        except SyntaxError as error:
            hint = "" if any(sign in text for sign in "<>=") else _QUOTES
            raise ConfigError("--where", text, _ACCEPTED, hint=hint) from error

    def __str__(self) -> str:
        return self._text

    @property
    def names(self) -> list[str]:
        """The names whose values are compared."""
        compared = (node for node in ast.walk(self._condition) if isinstance(node, ast.Compare))
        return list(dict.fromkeys(self._word(node.left) for node in compared))

    def check(self, runs: Iterable[StoredRun]) -> None:
        """Check that each name is known to at least one of the runs.

        Raises:
            ConfigError: a name is unknown to all runs; the message suggests the nearest name.
        """
        known = {name for run in runs for name in run.names}
        for name in self.names:
            if known and name not in known:
                accepted = "a metric, a setting, or one of id, name, state, epoch, step, started, seconds, directory"
                raise ConfigError("--where", name, accepted, options=sorted(known))

    def __call__(self, run: StoredRun) -> bool:
        return self._holds(self._condition, run)

    def _as_python(self) -> str:
        """Return the condition in Python, each name as `_N`, where N is its place in `_words`."""
        python, end = [], 0
        for token in _TOKENS.finditer(self._text):
            if token.start() != end:
                break
            end = token.end()
            found = token[0]
            if token["word"] and found not in ("and", "or", "not", "in"):
                self._words.append(found)
                found = f"_{len(self._words) - 1}"
            python.append("==" if found == "=" else found)
        if end != len(self._text):
            raise SyntaxError(self._text[end:])
        return "".join(python)

    def _checked(self, node: ast.expr) -> ast.expr:
        """Return the condition after a check that it contains no other syntax."""
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                self._checked(value)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._checked(node.operand)
        elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and len(node.ops) == 1:
            right = node.comparators[0]
            several = isinstance(node.ops[0], ast.In | ast.NotIn)
            if type(node.ops[0]) not in _COMPARISONS or several != isinstance(right, ast.List | ast.Tuple):
                raise SyntaxError
            self._constant(right)
        else:
            raise SyntaxError
        return node

    def _holds(self, node: ast.expr, run: StoredRun) -> bool:
        if isinstance(node, ast.BoolOp):
            holds = (self._holds(value, run) for value in node.values)
            return all(holds) if isinstance(node.op, ast.And) else any(holds)
        if isinstance(node, ast.UnaryOp):
            return not self._holds(node.operand, run)
        assert isinstance(node, ast.Compare)
        name = self._word(node.left)
        if name not in run.names:
            return False
        value, other = run.value(name), self._constant(node.comparators[0])
        if isinstance(other, str) and not isinstance(value, str):
            value = str(value)
        try:
            return bool(_COMPARISONS[type(node.ops[0])](value, other))
        except TypeError:
            return False

    def _word(self, node: ast.expr) -> str:
        assert isinstance(node, ast.Name)
        return self._words[int(node.id[1:])]

    def _constant(self, node: ast.expr) -> Any:
        if isinstance(node, ast.List | ast.Tuple):
            return [self._constant(each) for each in node.elts]
        if isinstance(node, ast.Name):
            word = self._word(node)
            return _CONSTANTS.get(word.lower(), word)
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise SyntaxError from None
