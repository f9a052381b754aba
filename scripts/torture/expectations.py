"""Contradictions between what an error says is accepted and what is accepted."""

from __future__ import annotations

import re
from collections.abc import Mapping

OF_WRONG_TYPE = ("''", "abc", "[1,a]")
"""Values of a wrong type for most keys; their messages have to say whether null or a boolean is accepted."""
SAID = {"null": r"\bnull\b", "true": r"\b(true|false|boolean)\b"}
"""How a message says that a value is accepted, by value."""
SAID_OF_ITSELF = {"null": r"\bnull\b(?! for| because)", "true": r"(?<!: )(?<!be )(?<!is )\btrue\b(?! for| because)"}
"""The same, in the message about the value itself, without conditions."""
NUMBERS = {"0": 0.0, "-1": -1.0, "1.5": 1.5}
_NUMBER = r"(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?![\w%]|\.\d)"
_OTHER_NUMBERS = r"\b(numbers?|float|fraction|share|strings?|name|path)\b|in [\[(]"


def contradictions(key: str, ends: Mapping[str, tuple[int, str]]) -> list[str]:
    """Return the values that are accepted although a message says otherwise, and those refused by their own message.

    Only what a message says of null, of booleans and of the numbers 0, -1 and 1.5 is compared.

    Args:
        key: the key that has the values.
        ends: the exit status and the output of a command with each value, by value.
    """
    expected = {value: text for value, (_, output) in ends.items() if (text := _expected(key, output)) is not None}
    found = []
    for value, (status, _) in ends.items():
        silent = [refused for refused, text in expected.items() if status == 0 and _denies(text, value, refused)]
        if silent:
            text = expected[silent[0]]
            found.append(f"{key}={value} is accepted, but the message for {silent[0]} does not say so: Expected {text}")
        if status == 2 and value in expected and _says(expected[value], value):
            found.append(f"{key}={value} is refused, but its message says that it is accepted: {expected[value]}")
    return found


def _expected(key: str, output: str) -> str | None:
    """Return what a message that begins with the key expects, with its hints; None if there is none."""
    text = " ".join(output.split())
    match = re.search(rf"(?<![\w.]){re.escape(key)}: .{{1,500}}? is invalid\. Expected (.*)", text)
    return match and match[1]


def _denies(text: str, value: str, refused: str) -> bool:
    """Return whether the message for a refused value excludes an accepted value."""
    if value in SAID:
        right_type = "one of the columns" in text or (refused == "abc" and "exist" in text)
        right_type |= value == "true" and "string" in text
        return refused in OF_WRONG_TYPE and not right_type and re.search(SAID[value], text) is None
    return value in NUMBERS and _admits(text, NUMBERS[value]) is False


def _says(text: str, value: str) -> bool:
    """Return whether the message about a value says that this value is accepted."""
    if value in SAID_OF_ITSELF:
        return re.search(SAID_OF_ITSELF[value], text.partition(". ")[0]) is not None
    return value in NUMBERS and _admits(text, NUMBERS[value]) is True


def _admits(text: str, number: float) -> bool | None:
    """Return whether a number is in the interval of a message; None if it has another form than a plain interval."""
    first = text.partition(". ")[0]
    if number % 1 and re.search(r"\bintegers?\b", first) and not re.search(_OTHER_NUMBERS, first):
        return False
    limits = {
        "at least": number.__ge__,
        "at most": number.__le__,
        "above": number.__gt__,
        "below": number.__lt__,
    }
    bounds = [(words, float(bound)) for words, bound in re.findall(rf"\b({'|'.join(limits)}) {_NUMBER}", first)]
    if "non-negative" in first:
        bounds.append(("at least", 0.0))
    if not bounds or re.search(r"\b(or|auto|if|because|strings?|names?)\b|\bnull\b", first):
        return None
    return all(limits[words](bound) for words, bound in bounds)
