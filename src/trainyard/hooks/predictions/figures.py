"""Figures of predictions: images, points, tables, numbers, and the confusion matrix.

Colors are from Okabe and Ito's palette, which is safe for color-blind readers; errors are also marked by shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]

DPI = 100
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#000000", "#999999")
MARKERS = "osD^vPX*"
WRONG = "#D55E00"
PLAIN = "0.25"


def images(pictures: Array, labels: Sequence[tuple[str, str, bool]], notes: Sequence[str], title: str) -> Figure:
    """Return a grid of pictures with "predicted / true" above each.

    Args:
        pictures: `[n, C, H, W]`, numbers of any range; with two channels, or more than four, the first is shown.
        labels: for each picture: the predicted label, the true label, and whether the prediction is right.
        notes: for each picture a short text below it.
        title: the title of the figure.
    """
    step = math.ceil(max(pictures.shape[2:]) / 256)  # no finer than the figure needs
    pictures = pictures[:, :, ::step, ::step]
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    tall = pictures.shape[2] / pictures.shape[3]
    inches = 1.25 if max(pictures.shape[2:]) <= 64 else 1.9
    letters = int(inches / 0.075)
    one_line = all(len(f"x {mine} / {true}") <= letters - 2 for mine, true, _ in labels)
    above, below, gap = (0.24 if one_line else 0.4) / inches, 0.2 / inches, 0.1
    width, height = 1 + gap, tall + above + below + gap / 2
    figure, axes = canvas(columns * width * inches, rows * height * inches, title)
    axes.set_axis_off()
    shown = colours(pictures)
    for k, (mine, true, right) in enumerate(labels):
        x, y = k % columns * width, k // columns * height + above
        axes.imshow(shown[k], extent=(x, x + 1, y + tall, y), interpolation="nearest", zorder=1)
        style: dict[str, Any] = {"color": PLAIN} if right else {"color": WRONG, "weight": "bold"}
        joined = f"{mine} / {true}" if one_line else f"{short(mine, letters - 3)} /\n{short(true, letters - 1)}"
        text = joined if right else f"✗ {joined}"
        where = (x + 0.5, y - 0.04)
        write(axes, where, text, ha="center", va="bottom", fontsize=10 if one_line else 8, linespacing=1.0, **style)
        write(axes, (x + 0.5, y + tall + 0.05), notes[k], ha="center", va="top", fontsize=7, color="0.45")
        edge, line = (PLAIN, 0.5) if right else (WRONG, 3)
        corners = [x, x + 1, x + 1, x, x], [y, y, y + tall, y + tall, y]
        axes.plot(*corners, color=edge, linewidth=line, solid_joinstyle="miter", zorder=2)
    axes.set(xlim=(-gap / 2, columns * width - gap / 2), ylim=(rows * height, 0), aspect="auto")
    return figure


def points(x: Array, predicted: Array, target: Array, names: Sequence[str], title: str) -> Figure:
    """Return a scatter plot of points `[n, 2]`, colored by the predicted class; wrong ones have a ring."""
    present = np.unique(predicted)
    labels = [_plain(short(names[c], 14)) for c in present]
    columns = math.ceil((len(present) + 1) / 24)
    room = columns * (0.5 + 0.08 * max(map(len, [*labels, "predicted"])))
    figure, axes = canvas(6.2, 5.2, title, right=0.2 + room, left=0.75, bottom=0.55)
    size = 26 if len(x) <= 500 else 12
    for c, label in zip(present, labels, strict=True):
        of = predicted == c
        colour, marker = PALETTE[c % len(PALETTE)], MARKERS[c // len(PALETTE) % len(MARKERS)]
        look: dict[str, Any] = {"color": colour, "marker": marker, "edgecolors": "white", "linewidths": 0.4}
        axes.scatter(x[of, 0], x[of, 1], s=size, label=label, **look)
    wrong = predicted != target
    if wrong.any():
        look = {"facecolors": "none", "edgecolors": "black", "linewidths": 1.2}
        axes.scatter(x[wrong, 0], x[wrong, 1], s=size * 3.5, label="wrong", **look)
    axes.set(xlabel="$x_0$", ylabel="$x_1$")
    axes.set_aspect("equal", adjustable="datalim")
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0, "frameon": False}
    axes.legend(title="predicted", alignment="left", ncols=columns, fontsize=8, title_fontsize=8, **beside)
    return figure


def table(header: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[bool], title: str) -> Figure:
    """Return a table with a row for each sample; rows of wrong predictions are marked."""
    widths = [max(len(line[k]) for line in (header, *lines)) * 0.085 + 0.25 for k in range(len(header))]
    pitch = 0.23
    figure, axes = canvas(sum(widths) + 0.3, (len(lines) + 1.2) * pitch, title)
    axes.set_axis_off()
    starts = 0.25 + np.concatenate([[0], np.cumsum(widths)[:-1]])
    axes.set(xlim=(0, sum(widths) + 0.3), ylim=((len(lines) + 1.2) * pitch, 0))
    for row, line in enumerate((header, *lines)):
        y = (row + 0.5) * pitch
        wrong = row > 0 and not right[row - 1]
        style: dict[str, Any] = {"color": PLAIN, "weight": "bold"} if row == 0 else {"color": PLAIN}
        if wrong:
            style = {"color": WRONG, "weight": "bold"}
            axes.axhspan(y - pitch / 2, y + pitch / 2, color=WRONG, alpha=0.1, linewidth=0)
            write(axes, (0.03, y), "✗", va="center", fontsize=9, **style)
        for start, width, cell in zip(starts, widths, line, strict=True):
            write(axes, (start + width - 0.2, y), cell, ha="right", va="center", fontsize=9, **style)
    axes.axhline(pitch, color=PLAIN, linewidth=0.8)
    return figure


def numbers(predicted: Array, target: Array, title: str) -> Figure:
    """Return plots of predicted over true numbers, `[n, D]`: a panel with the diagonal for each of the first four."""
    panels = min(4, target.shape[1])
    figure, first = canvas(4.6 * panels - 0.9, 4.2, title, left=0.8, bottom=0.55)
    first.remove()
    top = 1 - _TITLE / figure.get_figheight()
    for panel in range(panels):
        left = (panel * 4.6 + 0.8) / figure.get_figwidth()
        axes = figure.add_axes((left, 0.55 / figure.get_figheight(), 3.6 / figure.get_figwidth(), top - 0.14))
        true, mine = target[:, panel], predicted[:, panel]
        both = np.concatenate([true, mine])
        both = both[np.isfinite(both)]
        ends = (both.min(), both.max()) if len(both) else (0, 1)
        axes.plot(ends, ends, color=PLAIN, linewidth=1, linestyle="--")
        axes.scatter(true, mine, s=12, color=PALETTE[0], alpha=0.6, linewidths=0)
        output = f", output {panel}" if target.shape[1] > 1 else ""
        axes.set(xlabel=f"true{output}", ylabel="predicted")
    return figure


def confusion(counts: Array, names: Sequence[str], title: str) -> Figure:
    """Return the confusion matrix `[C, C]` as a heat map: colors are fractions of the rows, numbers are counts.

    With up to 10 classes, a cell also shows the fraction in percent; with more than 30, it shows no number.
    """
    classes = len(counts)
    shares = row_shares(counts)
    ticks = range(0, classes, math.ceil(classes / 40))
    labels = [_plain(short(names[k], 14)) for k in ticks]
    longest = max(map(len, labels))
    cell = 0.52 if classes <= 10 else 0.36 if classes <= 30 else max(0.04, 11 / classes)
    side = max(2.2, cell * classes)
    upright = longest * 0.085 > side / len(ticks) * 0.9
    figure, axes = canvas(
        side,
        side,
        title,
        left=0.5 + longest * 0.085,
        bottom=0.45 + (longest * 0.085 if upright else 0.1),
        right=0.95,
    )
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_xticks(ticks, labels, fontsize=9, rotation=90 if upright else 0)
    axes.set_yticks(ticks, labels, fontsize=9)
    axes.set(xlabel="predicted", ylabel="true")
    if classes <= 30:
        size = 9 if counts.max() < 10_000 else 7
        for i, j in zip(*np.nonzero(counts), strict=True):
            percent = f"\n{_percent(shares[i, j])}" if classes <= 10 else ""
            colour = "white" if shares[i, j] > 0.55 else "black"
            write(axes, (j, i), f"{counts[i, j]}{percent}", ha="center", va="center", fontsize=size, color=colour)
    box = axes.get_position()
    width = figure.get_figwidth()
    bar = figure.add_axes((box.x1 + 0.15 / width, box.y0, 0.15 / width, box.height))
    figure.colorbar(image, cax=bar, label="fraction of the true class")
    return figure


def row_shares(counts: Array) -> npt.NDArray[np.float64]:
    """Divide each row of a confusion matrix by its sum; a class that does not occur has a row of zeros."""
    totals, shares = counts.sum(1, keepdims=True), np.zeros(counts.shape)
    np.divide(counts, totals, out=shares, where=totals > 0)
    return shares


def short(name: str, letters: int) -> str:
    """Shorten a name to this many letters."""
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


_TITLE = 0.62


def _percent(share: float) -> str:
    """Format a fraction in percent; a share near 0 or 1 is not rounded to it."""
    digits = 0 if share in (0, 1) or 0.01 <= share <= 0.99 else 1
    return f"{100 * share:.{digits}f} %"


def canvas(
    width: float, height: float, title: str, left: float = 0.1, bottom: float = 0.1, right: float = 0.1
) -> tuple[Figure, Axes]:
    """Return a figure around axes of this size in inches, with room at the sides and for two title lines above.

    Positions are set directly: a layout engine takes longer than everything else.
    """
    from matplotlib.figure import Figure  # imported here because it is slow

    wide = max(left + width + right, 0.078 * max(map(len, title.splitlines())) + 0.3)
    left += max(0.0, wide - left - width - right) / 2
    tall = bottom + height + _TITLE
    figure = Figure(figsize=(wide, tall), dpi=DPI)
    axes = figure.add_axes((left / wide, bottom / tall, width / wide, height / tall))
    figure.text(0.5, 1 - 0.1 / tall, title, ha="center", va="top", fontsize=10, parse_math=False)
    return figure, axes


def write(axes: Axes, where: tuple[float, float], text: str, **style: Any) -> None:
    """Write a text literally: dollar signs do not start a formula."""
    axes.text(*where, text, parse_math=False, **style)


def _plain(name: str) -> str:
    """Escape dollar signs, which would start a formula."""
    return name.replace("$", r"\$")


def colours(pictures: Array) -> npt.NDArray[np.uint8]:
    """Convert `[n, C, H, W]` to bytes `[n, H, W, 3]`, on one scale for all of them."""
    chosen = pictures[:, :3] if pictures.shape[1] in (3, 4) else pictures[:, :1].repeat(3, 1)
    finite = chosen[np.isfinite(chosen)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = np.nan_to_num((chosen - low) / ((high - low) or 1.0)).clip(0, 1)
    return (255 * scaled).round().astype(np.uint8).transpose(0, 2, 3, 1)
