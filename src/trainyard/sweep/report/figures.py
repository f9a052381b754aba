"""Figure for a paper: learning curves with bands, and the means of the configurations with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainyard.sweep.report.curves import averaged
from trainyard.sweep.report.export import Comparison
from trainyard.sweep.report.journals import JobNumbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURED = 7
"""Number of configurations whose curves have a color and a name, best first; the others are gray."""
COMPARED = 20
"""Number of configurations whose means are shown, best first."""
_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,  # fonts that a publisher accepts
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "trainyard",
}


def write(table: Comparison, numbers: Mapping[int, JobNumbers], objective: str | None, file: Path, kind: str) -> Path:
    """Write the figure: on the left the learning curves of the objective, on the right the first metric of the table.

    Args:
        table: the configurations.
        numbers: the numbers of the jobs, by their number.
        objective: the objective's name; without one, or without curves, the left half is omitted.
        file: the output file.
        kind: `pdf` or `svg`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = table.configurations[:COMPARED]
    curves = {
        index: averaged([numbers[row.num].curves.get(objective or "", []) for row in each.rows if row.num in numbers])
        for index, each in enumerate(table.configurations)
    }
    with_curves = any(own.mean for own in curves.values())
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type,unused-ignore]
        figure = Figure(figsize=(7.0, max(2.6, 1.0 + 0.19 * len(shown))), layout="constrained")
        axes = figure.subplots(1, 2 if with_curves else 1, squeeze=False)[0]
        if with_curves:
            left: Axes = axes[0]
            for index in reversed(range(len(curves))):
                own = curves[index]
                steps, values = [step for step, _ in own.mean], [value for _, value in own.mean]
                if index >= COLOURED:
                    left.plot(steps, values, color="0.85", linewidth=0.6)
                    continue
                colour = f"C{index}"
                left.plot(steps, values, color=colour, linewidth=1.2)
                if own.spread:
                    low = [value - spread for value, spread in zip(values, own.spread, strict=True)]
                    high = [value + spread for value, spread in zip(values, own.spread, strict=True)]
                    left.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            left.set_xlabel("iteration")
            left.set_ylabel(objective or "")
        right: Axes = axes[-1]
        for index in range(len(shown)):
            sample = table.samples[table.metrics[0]][index]
            if sample.mean is not None:
                colour = f"C{index}" if index < COLOURED else "0.5"
                right.errorbar(
                    sample.mean,
                    index,
                    xerr=sample.margin,
                    fmt="o",
                    color=colour,
                    markersize=3.5,
                    capsize=2,
                    linewidth=1,
                )
        names = _short(table.names)
        labels = [" ".join(f"{names[key]}={each.value(key) or '-'}" for key in table.names) for each in shown]
        ticks = right.set_yticks(range(len(shown)), [label or "all jobs" for label in labels])
        for index, tick in enumerate(ticks[:COLOURED]):
            tick.label1.set_color(f"C{index}")  # the names of the curves
        right.set_ylim(len(shown) - 0.5, -0.5)
        counts = sorted({each.n for each in shown})
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
        right.set_xlabel(f"{table.metrics[0]}\n(95 % confidence interval, n = {n})" if table.over else table.metrics[0])
        figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else {"CreationDate": None})
    return file


def _short(names: Sequence[str]) -> dict[str, str]:
    """Return the last part of each name if it is unique: `lr` for `optim.lr`."""
    last = [name.rpartition(".")[2] for name in names]
    return {name: own if last.count(own) == 1 else name for name, own in zip(names, last, strict=True)}
