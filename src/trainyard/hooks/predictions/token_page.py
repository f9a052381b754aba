"""Text of the prediction log: predicted tokens below the true ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
import torch

WIDTH = 100
_VISIBLE = {"\n": "↵", "\t": "→", "\r": "←"}


def compared(
    target: npt.NDArray[Any], predicted: npt.NDArray[Any], decode: Callable[[Any], str] | None
) -> tuple[str, int, int]:
    """Render lines of true tokens, with the predicted ones below them, and a mark below each wrong one.

    Args:
        target: int64 `[T]`; a token below 0 is padding and is ignored.
        predicted: int64 `[T]`.
        decode: the function from tokens to text; None shows their numbers.

    Returns:
        The lines, the number of correct tokens, and the number of tokens.
    """
    padding = target < 0
    rows = [[_cell(token, decode) for token in tokens.tolist()] for tokens in (target, predicted)]
    rows[0] = ["·" if padded else cell for cell, padded in zip(rows[0], padding, strict=True)]
    wrong = (target != predicted) & ~padding
    width = max(len(cell) for row in rows for cell in row)
    gap = "" if width == 1 and decode is not None else " "
    rows = [*rows, ["^" * width if mark else "" for mark in wrong]]
    step = max(1, WIDTH // (width + len(gap)))
    lines: list[str] = []
    for first in range(0, len(target), step):
        for name, row in zip(("true", "predicted", ""), rows, strict=True):
            lines.append(f"{name:<9}  {gap.join(cell.ljust(width) for cell in row[first : first + step])}".rstrip())
    count = int((~padding).sum())
    return "\n".join(lines), count - int(wrong.sum()), count


def page(
    title: str,
    index: npt.NDArray[Any],
    target: npt.NDArray[Any],
    predicted: npt.NDArray[Any],
    loss: Sequence[float],
    decode: Callable[[Any], str] | None,
) -> str:
    """Return the text of all samples `[n, T]`, each below a line with its scores."""
    parts = [f"{title}\nA mark (^) is below each token that is predicted incorrectly."]
    for number, true, mine, value in zip(index, target, predicted, loss, strict=True):
        lines, right, count = compared(true, mine, decode)
        parts.append(f"Sample {number}: {right} of {count} tokens right, loss {value:.3f}\n{lines}")
    return "\n\n".join(parts) + "\n"


def _cell(token: int, decode: Callable[[Any], str] | None) -> str:
    if decode is None or token < 0:
        return str(token)
    text = decode(torch.tensor([token]))
    return "".join(_VISIBLE.get(letter, letter if letter.isprintable() else "�") for letter in text) or "�"
